"""Errors that are the user's to mend; jobs print them as one line and exit with code 2."""

MOST_SHOWN = 300
"""Characters of somebody else's text that a message quotes at most."""


class UserError(ValueError):
    """The input (a config, a data file, a model, the machine) does not allow what was asked for.

    The message names what is wrong, where, and what to do about it.
    """


def printable(text: str, most: int | None = MOST_SHOWN) -> str:
    """``text`` as one line that a terminal only shows: line breaks, escape sequences and marks that turn the direction
    of reading are spelt out, and what is longer than ``most`` characters is cut off."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
    return shown if most is None or len(text) <= most >= len(shown) else f"{shown[:most]} ..."
