"""Held-out evaluation, and the statistics with which its metrics are reported."""
