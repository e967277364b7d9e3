"""Types that kernels, their references and their callers share."""
