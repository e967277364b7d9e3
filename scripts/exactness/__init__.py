"""Checks of exactness: budget 1.0 against dense attention, token by token."""
