"""Calibrated interactive reinforcement learning for dialogue policies, distributed on Ray."""

__version__ = "0.1.0"
