"""The arms: each file is one loop that composes the parts. Start with ``calibrated.py``."""
