"""Credit from the rewards of a group of dialogues, one file a formula; ``base.py`` has the contract."""
