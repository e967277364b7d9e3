"""A lease of a GPU machine: what travels there, and what it runs."""
