"""Intervals and corrections that several parts report their figures with."""
