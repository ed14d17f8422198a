"""Estimators of the shifts and of how human a simulator is: one file each."""
