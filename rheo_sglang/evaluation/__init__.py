"""Answers of served models: divergence from dense attention, recall of facts, RULER; prompts, requests, intervals."""
