"""Detectors of simulator health, one file each, known by the name of the file; ``health/base.py`` has the contract."""
