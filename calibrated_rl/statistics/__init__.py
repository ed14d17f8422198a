"""Intervals and corrections that several parts report their metrics with."""
