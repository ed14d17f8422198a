"""The value of one policy turn after a logged history, one file a method; ``base.py`` has the contract."""
