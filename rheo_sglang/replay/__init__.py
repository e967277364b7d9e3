"""Replay: what any tiering policy, capacity and budget would have made of a trace, with Belady's MIN as the bound."""
