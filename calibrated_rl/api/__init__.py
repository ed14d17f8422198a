"""The commands as functions: they return values where the command line prints, and raise where it exits.

``calibrated_rl`` itself has them all (``import calibrated_rl as crl``).
"""
