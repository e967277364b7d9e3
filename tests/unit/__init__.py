"""Tests of one part each, against plain loops and hand-computed examples."""
