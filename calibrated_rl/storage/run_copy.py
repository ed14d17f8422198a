"""The copy of a run in a store (S3, Google Cloud Storage, a file system that others see), to go on from elsewhere.

Below the store's prefix and the run's name lie

- ``files/SHA256``: the content of files, each under its digest, so that none is ever changed and what is there already
  is not sent again;
- ``manifests/NUMBER-SHA256.json``: which files the run folder had, with their sizes and digests. One is written when
  all of its files are there: what it names is the copy, whole, on stores that cannot rename, too.

The last manifests are kept, and the files that they name. A manifest or a file whose content is not that of its name
is refused, and the manifest before it is taken. What is written and read, and how, is ``pyarrow.fs``'s: its file
systems of S3, Google Cloud Storage and disks behave alike and come with the package that the replay store needs anyway.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pyarrow import fs

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.storage.files import read_json, to_disk, write_json
from calibrated_rl.storage.store_address import KEY, open_store

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever another program would misread or miss something."""
CHUNK = 2**23
"""Bytes of a file in memory at once."""
FILES, MANIFESTS = "files", "manifests"
"""The folders of a copy."""
KNOWN = ".store.json"
"""In the run folder: the manifests that this folder has written or come from."""
_MANIFEST = re.compile(r"(\d{8})-([0-9a-f]{64})\.json")


@dataclass(frozen=True)
class _File:
    digest: str
    size: int


class RunCopy:
    """The copy of the run in ``folder``. Not for use by several threads at once."""

    def __init__(self, address: str, name: str, folder: Path, kept: int) -> None:
        """
        Args:
            address: of the store, such as ``s3://bucket/prefix?region=eu-central-1``.
            name: the run's.
            kept: how many manifests stay, the last ones.

        Raises:
            UserError: ``check_address`` refuses the address.
        """
        self._store = open_store(address, name)
        self._folder, self._kept = folder, kept
        self._there: dict[str, int] | None = None
        """Sizes of the files in the store, by digest; None: ask it."""
        self._digests: dict[str, tuple[tuple[int, int, int], _File]] = {}
        """Of local files, with what would show that one has changed."""

    # ---- sending -------------------------------------------------------------------------------------

    def send(self) -> None:
        """Make the copy what the run folder is now. Files may be added, replaced and appended to meanwhile.

        Raises:
            OSError: the store is out of reach or refuses, or a file went while it was sent. The copy is what it was.
            UserError: somebody else has written to the copy meanwhile.
        """
        try:
            self._send()
        except OSError:
            self._there = None  # what was half sent is to be seen
            raise

    def _send(self) -> None:
        before = self._list_manifests()
        self._refuse_others(before)
        if self._there is None:
            if isinstance(self._store.base_fs, fs.LocalFileSystem):  # object stores have no folders
                for place in (FILES, MANIFESTS):
                    Path(self._store.base_path, place).mkdir(parents=True, exist_ok=True)
            self._there = self._sizes(FILES)
        files = {path.relative_to(self._folder).as_posix(): self._send_file(path) for path in self._local_files()}
        content = json.dumps(
            {"format": FORMAT, "files": {name: [file.digest, file.size] for name, file in sorted(files.items())}},
            indent=1,
        ).encode()
        digest = hashlib.sha256(content).hexdigest()
        if before and before[-1].endswith(f"-{digest}.json"):
            return
        number = 1 + max((int(name[:8]) for name in before), default=0)
        name = f"{number:08d}-{digest}.json"
        known = self._known()
        # Noted first: if this process dies in between, what it wrote must not pass for somebody else's.
        write_json(self._folder / KNOWN, {"manifests": [*known[-self._kept :], name]})
        self._write(f"{MANIFESTS}/{name}", [content])
        self._tidy([*before, name])

    def _local_files(self) -> Iterator[Path]:
        for place, folders, names in os.walk(self._folder):  # passes over folders that go meanwhile
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if place == str(self._folder) and "variants" in folders:
                folders.remove("variants")  # they have copies of their own
            yield from (
                Path(place, name) for name in sorted(names) if not name.startswith(".") and not name.endswith(".part")
            )

    def _send_file(self, path: Path) -> _File:
        """Send a file as it is now, if its content is not there. Later changes go by: a file that is appended to is
        read no further than it was, and one that is replaced stays open."""
        assert self._there is not None
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._digests.get(str(path))
            if known is None or known[0] != signature:
                digest = hashlib.sha256()
                for chunk in _chunks(stream, status.st_size):
                    digest.update(chunk)
                known = self._digests[str(path)] = signature, _File(digest.hexdigest(), status.st_size)
            file = known[1]
            if self._there.get(file.digest) != file.size:
                stream.seek(0)
                self._write(f"{FILES}/{file.digest}", _chunks(stream, file.size))
                self._there[file.digest] = file.size
        return file

    def _write(self, path: str, chunks: Iterable[bytes]) -> None:
        with self._store.open_output_stream(path) as out:
            for chunk in chunks:
                out.write(chunk)

    def _tidy(self, manifests: list[str]) -> None:
        """Remove manifests that are too old, and the files that none of the others names."""
        assert self._there is not None
        for old in manifests[: -self._kept]:
            self._store.delete_file(f"{MANIFESTS}/{old}")
        wanted: set[str] = set()
        for name in manifests[-self._kept :]:
            content = self._read_manifest(name)
            wanted |= {file.digest for file in content.values()} if content is not None else set()
        for digest in self._there.keys() - wanted:
            self._store.delete_file(f"{FILES}/{digest}")
            del self._there[digest]

    # ---- fetching ------------------------------------------------------------------------------------

    def bring_down(self) -> None:
        """Before a run begins or goes on: where the folder holds no run, fetch the last whole copy, if there is one.

        Raises:
            UserError: the store is out of reach, and the folder is empty: the run may be there. Or the store holds what
                the folder does not know of, or a newer or foreign format, or nothing that is whole.
        """
        begun = (self._folder / "config.yaml").is_file()
        try:
            manifests = self._list_manifests()
            if begun:
                self._refuse_others(manifests)
            elif manifests:
                self._fetch(manifests)
        except OSError as error:
            reason = printable(first_line(error))
            if not begun:
                raise UserError(
                    f"{KEY} cannot be read, and the run may be there: {reason}"
                ) from error
            logger.warning(f"the store cannot be reached, and the run goes on from its folder: {reason}")

    def _fetch(self, manifests: list[str]) -> None:
        arriving = self._folder / ".arriving"
        for name in reversed(manifests):
            files = self._read_manifest(name)
            if files is None:
                logger.warning(f"refused: {name} in the store is torn or altered: its checksum differs")
                continue
            shutil.rmtree(arriving, ignore_errors=True)
            broken = next((path for path, file in files.items() if not self._fetch_file(file, arriving / path)), None)
            if broken is not None:
                logger.warning(f"refused: {name} in the store: {broken} is missing, torn or altered")
                continue
            for entry in sorted(arriving.iterdir(), key=lambda entry: entry.name == "config.yaml"):
                target = self._folder / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(entry, target)
            arriving.rmdir()
            write_json(self._folder / KNOWN, {"manifests": [name]})
            size = sum(file.size for file in files.values())
            logger.info(f"fetched the run from the store: {len(files)} files, {size / 2**20:.1f} MiB")
            return
        shutil.rmtree(arriving, ignore_errors=True)
        raise UserError(f"{KEY} holds this run, and no copy of it is whole")

    def _fetch_file(self, file: _File, target: Path) -> bool:
        """Whether the file came as it was sent."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.copy_files(f"{FILES}/{file.digest}", str(target), self._store, fs.LocalFileSystem(), chunk_size=CHUNK)
        except FileNotFoundError:
            return False
        to_disk(target)
        with target.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.digest

    # ---- both ----------------------------------------------------------------------------------------

    def _sizes(self, place: str) -> dict[str, int]:
        """Sizes of the files in a folder of the store, by name."""
        infos = self._store.get_file_info(fs.FileSelector(place, allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def _list_manifests(self) -> list[str]:
        """Names of all manifests, the last one last."""
        return sorted(name for name in self._sizes(MANIFESTS) if _MANIFEST.fullmatch(name))

    def _known(self) -> list[str]:
        file = self._folder / KNOWN
        return [str(name) for name in read_json(file)["manifests"]] if file.is_file() else []

    def _refuse_others(self, manifests: list[str]) -> None:
        if manifests and manifests[-1] not in self._known():
            raise UserError(
                f"{KEY} holds a later state of this run than {self._folder}, from another machine: "
                "remove the folder to go on from there, or give the run another name (name=...)"
            )

    def _read_manifest(self, name: str) -> dict[str, _File] | None:
        """The files that it names; None: it is not as it was written.

        Raises:
            UserError: of another format, or it names files outside of a run folder.
        """
        with self._store.open_input_stream(f"{MANIFESTS}/{name}") as stream:
            content = stream.read()
        match = _MANIFEST.fullmatch(name)
        if match is None or hashlib.sha256(content).hexdigest() != match[2]:
            return None
        found = json.loads(content)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            version = found.get("format") if isinstance(found, dict) else None
            raise UserError(f"{name} in the store has the format {version}; this version reads {FORMAT} only")
        files = {path: _File(str(digest), int(size)) for path, (digest, size) in found["files"].items()}
        for path, file in files.items():
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or not re.fullmatch("[0-9a-f]{64}", file.digest):
                raise UserError(f"{name} in the store names '{printable(path)}', which is no file of a run")
        return files


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes.

    Raises:
        OSError: there are fewer: somebody has cut the file.
    """
    while size:
        chunk = stream.read(min(CHUNK, size))
        if not chunk:
            raise OSError(f"{stream.name} was cut while it was sent")
        size -= len(chunk)
        yield chunk
