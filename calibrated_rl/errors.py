"""Errors that jobs handle: those that the user can correct, and those after which a run restarts its parts."""

import errno
import re
from enum import StrEnum

MAX_QUOTED = 300
"""Maximum characters of foreign text that a message quotes."""


class UserError(ValueError):
    """Jobs print it as one line and exit with code 2.

    The input (a config, a data file, a model, the machine) does not allow what was requested.

    The message names what is wrong, where, and what to do about it.
    """


class PartLost(RuntimeError):
    """A process that a run cannot continue without died or does not answer; the message names it and the cause.

    The run restarts its parts and resumes from the last checkpoint, up to ``restarts`` times.
    """


class Party(StrEnum):
    """The parties that can break a dialogue."""

    POLICY = "policy"
    USER = "user"
    """The simulator, or another user model."""
    JUDGE = "judge"
    TOOL = "tool"
    ENGINE = "engine"
    """A replica of either side, or an endpoint: it died or did not answer."""


class RolloutFailure(RuntimeError):
    """A dialogue broke through no fault of the policy: it is dropped and counted, never scored."""

    def __init__(self, reason: str, party: Party = Party.ENGINE) -> None:
        super().__init__(reason)
        self.reason = reason
        """The name that it is counted under: ``policy: EngineDeadError`` (whose engine, and the cause),
        ``user_empty``."""
        self.party = party


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str, max_length: int | None = MAX_QUOTED) -> str:
    """``text`` as one line that is safe to print: line breaks, escape sequences and marks that change the direction
    of reading are escaped, and text longer than ``max_length`` characters is cut off."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:max_length])
    return escaped if max_length is None or len(text) <= max_length >= len(escaped) else f"{escaped[:max_length]} ..."


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, the user's share of it, or the largest file that a process may write, is exhausted."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that nothing more can be written, in whichever process it was raised: Ray wraps what its
    actors raise, and safetensors reports the operating system's error as text only."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        return True
    match = _OS_ERROR.search(str(cause))
    return match is not None and int(match[1]) in FULL_DISK
