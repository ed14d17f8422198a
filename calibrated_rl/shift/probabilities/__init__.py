"""Estimators that know the probabilities of what was said or done, and need no classifier: one file each."""
