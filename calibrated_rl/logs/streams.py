"""Bytes of a log file: compressed ones are unpacked while they are read, torn ones are refused."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.logs.record import WANTED

HEAD = 1 << 16
"""Bytes by which the kind of a file is found out."""


def _gzip(stream: IO[bytes]) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=stream)


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(stream, "zstd"))


_COMPRESSIONS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", _gzip),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
}
"""First bytes, name, and what unpacks an open file."""
ENDINGS = (".gz", ".bz2", ".xz", ".zst")
"""Of the names of compressed files."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file that is there, looked at once."""

    path: Path
    compression: str
    """``gzip``, ``bzip2``, ``xz``, ``zstd``, or empty."""
    head: bytes
    """The first ``HEAD`` bytes, unpacked."""

    @classmethod
    def of(cls, path: Path) -> "LogFile":
        """Look at ``path``.

        Raises:
            UserError: there is no such file, it cannot be read, is empty or torn.
        """
        try:
            with path.open("rb") as stream:
                start = stream.read(8)
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}; {WANTED}") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        compression = next((name for mark, (name, _) in _COMPRESSIONS.items() if start.startswith(mark)), "")
        with cls(path, compression, b"").open() as stream:
            head = stream.read(HEAD)
        if len(head) < HEAD and not head.removeprefix(b"\xef\xbb\xbf").strip():
            raise UserError(f"{path} is empty{f' below its {compression} compression' if compression else ''}")
        return cls(path, compression, head)

    @property
    def name(self) -> str:
        """The file's name in small letters, without the ending of its compression."""
        name = self.path.name.lower()
        return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes, unpacked.

        Raises:
            UserError: while it is open: it cannot be read, or its compressed data are torn or damaged.
        """
        try:
            with self.path.open("rb") as raw:
                unpack = next((opener for name, opener in _COMPRESSIONS.values() if name == self.compression), None)
                if unpack is None:
                    yield raw
                else:
                    with unpack(raw) as unpacked:
                        yield unpacked
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._torn(error) from error
        except OSError as error:
            if self.compression and error.errno is None:
                raise self._torn(error) from error
            raise UserError(f"{self.path} cannot be read ({error.strerror or first_line(error)})") from error

    def whole(self) -> bytes:
        """All bytes, unpacked.

        Raises:
            UserError: as ``open``.
        """
        with self.open() as stream:
            return stream.read()

    def buffered(self) -> IO[bytes]:
        """The unpacked bytes as a file with random access: on the disk, or, of a compressed one, in memory."""
        return io.BytesIO(self.whole()) if self.compression else self.path.open("rb")

    def _torn(self, error: BaseException) -> UserError:
        return UserError(
            f"{self.path} is a torn or damaged {self.compression} file ({first_line(error)}): copy or download it again"
        )
