"""How a dialogue lies in its records: one format a file, found by the keys. ``base.py`` has the contract."""
