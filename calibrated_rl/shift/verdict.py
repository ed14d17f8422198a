"""How to read a metric beside its null band, in a word or two.

The band says where the metric lies when nothing but chance separates the two sides (human users against other human
users). ``apart``: the whole interval lies beyond the band, on the side where the sides are further apart. ``unclear``:
the metric does, and its interval reaches into the band. Everything else, nearer than chance too, is ``within the null
band``: which is no proof of sameness, only the absence of a difference that this metric and so few dialogues show.
"""

import math

from calibrated_rl.shift.base import Estimate

APART, UNCLEAR, WITHIN, NO_BAND, UNDEFINED = "apart", "unclear", "within the null band", "no null band", "undefined"
_SLACK = 1e-9


def verdict(estimate: Estimate) -> str:
    """One of the five words above; ``undefined`` where the metric itself is no number."""
    if not math.isfinite(estimate.value):
        return UNDEFINED
    low, high = estimate.null_low, estimate.null_high
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return NO_BAND
    # What differs in its last bits alone does not differ.
    low, high = low - _SLACK * max(1.0, abs(low)), high + _SLACK * max(1.0, abs(high))
    above, below = estimate.far != "below", estimate.far != "above"
    if (above and estimate.low > high) or (below and estimate.high < low):
        return APART
    if (above and estimate.value > high) or (below and estimate.value < low):
        return UNCLEAR
    return WITHIN
