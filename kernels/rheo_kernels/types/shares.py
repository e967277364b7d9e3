"""Fixed-point shares of attention: what adds them up, wherever it runs, gets the same sum to the bit.

A share is rounded up to the next of `LEVELS` levels, ``2 ** (-level / STEPS)``: by 2.2 % at most, less than any
estimate of it errs. A level's share is a whole number of ``2 ** -FRACTION``, so sums do not depend on their order, and
pages of one level are alike.
"""

from __future__ import annotations

STEPS = 32
"""Levels of one octave, a power of two."""
FRACTION = 30
"""Bits of a share; one of less than ``2 ** -FRACTION`` is nothing."""
MANTISSA = 14
"""Bits of a level's place in its octave."""
LEVELS = STEPS * FRACTION
"""Levels that are something; the next one is nothing."""
LOG_STEP = 46.1662413084468
"""Levels of a nat: ``STEPS / ln 2``."""
