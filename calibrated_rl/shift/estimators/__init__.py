"""Estimators that compare two sets of dialogues, one file each, known by the name of the file; ``interface.py`` has the
contract."""
