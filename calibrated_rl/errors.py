"""Errors that jobs deal with: the user's to mend, and those after which a run starts its parts again."""


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
