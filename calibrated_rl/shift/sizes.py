"""How many dialogues the two-sample tests need; apart from them, so that configs are checked without loading them."""

FOLDS = 3
"""Cross-fitting folds over dialogues, where nothing else is set."""


def least_dialogues(folds: int) -> int:
    """Fewest dialogues of a side that a classifier can be cross-fitted on: two a fold."""
    return 2 * folds


def least_to_halve(folds: int) -> int:
    """Fewest human dialogues whose random halves can each be cross-fitted on, as the null band needs them."""
    return 2 * least_dialogues(folds)
