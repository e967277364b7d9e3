"""Admission of requests by working set, and what is done when frames thrash: decisions, and their way to SGLang."""
