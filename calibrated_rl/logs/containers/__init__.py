"""How records lie in a file: one kind a file, found by itself. ``base.py`` has the contract."""
