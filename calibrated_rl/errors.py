"""Errors that jobs deal with: the user's to mend, and those after which a run starts its parts again."""

MOST_SHOWN = 300
"""Characters of somebody else's text that a message quotes at most."""


class UserError(ValueError):
    """Jobs print it as one line and exit with code 2.

    The input (a config, a data file, a model, the machine) does not allow what was asked for.

    The message names what is wrong, where, and what to do about it.
    """


class PartLost(RuntimeError):
    """A process that a run cannot go on without died or does not answer; the message names it and the cause.

    The run starts its parts again and goes on from the last checkpoint, up to ``restarts`` times.
    """


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str, most: int | None = MOST_SHOWN) -> str:
    """``text`` as one line that a terminal only shows: line breaks, escape sequences and marks that turn the direction
    of reading are spelt out, and what is longer than ``most`` characters is cut off."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
    return shown if most is None or len(text) <= most >= len(shown) else f"{shown[:most]} ..."
