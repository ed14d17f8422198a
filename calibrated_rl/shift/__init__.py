"""Estimators of the per-turn shifts, of how human a simulator is, and the bounds that the shifts give."""
