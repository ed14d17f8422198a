"""The arms: one file each, one readable loop that composes the parts. The place to read first.

Every module here is an arm, of the same name; ``config/arms.py`` has the contract.
"""
