"""The contract of a container: bytes of a file in, records out; and which container a file is.

To add one, write a file here with one class whose name ends in ``Container``. Nothing else has to be touched.
"""

from collections.abc import Iterator
from functools import cache
from typing import ClassVar, Protocol

from calibrated_rl.errors import UserError
from calibrated_rl.logs.kinds import unread_kind
from calibrated_rl.logs.parts import parts_of
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.streams import LogFile

BY_BYTES, BY_TEXT, ANY_TEXT = 0, 1, 2
"""How sure a container is of its files, the surest first; ``Container.rank``."""


class Container(Protocol):
    """Reads records out of one kind of file."""

    title: ClassVar[str]
    """What such a file is, in words."""
    rank: ClassVar[int]
    has_columns: ClassVar[bool]
    """Whether all records have the same keys."""

    def recognises(self, file: LogFile) -> bool:
        """Whether ``file`` is of this kind, by its first bytes and its name."""
        ...

    def rows(self, file: LogFile) -> Iterator[Row]:
        """All records in the file's order.

        Raises:
            UserError: the file is torn, or cannot be read as what it looks like.
        """
        ...


@cache
def containers() -> tuple[Container, ...]:
    """All that there are, the surest first."""
    found: list[Container] = list(parts_of("calibrated_rl.logs.containers", "Container").values())
    return tuple(sorted(found, key=lambda container: container.rank))


def container_of(file: LogFile) -> Container:
    """What reads ``file``.

    Raises:
        UserError: nothing does; names the kind of the file, and the command that converts it.
    """
    found = [container for container in containers() if container.recognises(file)]
    if found[0].rank > BY_BYTES and (kind := unread_kind(file)):
        raise UserError(f"{file.path} {kind}")
    return found[0]
