"""Temporal locality of page selection: traces of a real model, their statistics, and a process that imitates them."""
