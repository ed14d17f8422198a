"""Held-out evaluation, and the statistics with which its figures are reported."""
