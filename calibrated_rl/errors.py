"""Errors that jobs deal with: the user's to mend, and those after which a run starts its parts again."""

import errno
import re
from enum import StrEnum

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


class Party(StrEnum):
    """Who can break a dialogue."""

    POLICY = "policy"
    USER = "user"
    """The simulator, or whoever else plays the other side."""
    JUDGE = "judge"
    TOOL = "tool"
    ENGINE = "engine"
    """A replica of either side: it died or did not answer."""


class RolloutFailure(RuntimeError):
    """A dialogue broke through no fault of the policy: it is dropped and counted, never scored."""

    def __init__(self, reason: str, party: Party = Party.ENGINE) -> None:
        super().__init__(reason)
        self.reason = reason
        """As it is counted: ``policy: EngineDeadError`` (whose engine, and the cause), ``user_empty``."""
        self.party = party


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str, most: int | None = MOST_SHOWN) -> str:
    """``text`` as one line that a terminal only shows: line breaks, escape sequences and marks that turn the direction
    of reading are spelt out, and what is longer than ``most`` characters is cut off."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
    return shown if most is None or len(text) <= most >= len(shown) else f"{shown[:most]} ..."


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the user's share of it, or the largest file that a process may write, is exhausted."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def is_no_room(error: BaseException) -> bool:
    """Whether ``error`` says that nothing more can be written, in whichever process it was raised: Ray wraps what its
    actors raise, and safetensors tells the operating system's error in words alone."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, OSError) and cause.errno in NO_ROOM:
        return True
    found = _OS_ERROR.search(str(cause))
    return found is not None and int(found[1]) in NO_ROOM
