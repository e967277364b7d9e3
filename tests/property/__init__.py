"""Tests of the invariants under random sequences of operations."""
