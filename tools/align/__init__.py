"""Aligns one simulator by several methods, and measures each exactly."""
