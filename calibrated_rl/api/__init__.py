"""What the command line does, as functions: they return values where it prints, and raise where it exits.

``calibrated_rl`` itself has them all (``import calibrated_rl as crl``).
"""
