"""Which pages a request attends in one decode step."""
