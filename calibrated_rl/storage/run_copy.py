"""The copy of a run in a store (S3, Google Cloud Storage, a shared file system), to resume from on another machine.

Below the store's prefix and the run's name there are

- ``files/SHA256``: the content of files, each under its digest, so that none is ever changed and none is sent
  twice;
- ``manifests/NUMBER-SHA256.json``: which files the run folder had, with their sizes and digests. One is written when
  all of its files are stored: so the copy is complete on stores that cannot rename, too.

The last manifests are kept, and the files that they name. A manifest or a file whose content is not that of its name
is refused, and the manifest before it is used. Reading and writing is done by ``pyarrow.fs``: its file
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
"""Increased whenever a program of another version would misread or miss something."""
CHUNK = 2**23
"""Bytes of a file in memory at once."""
FILES, MANIFESTS = "files", "manifests"
"""The folders of a copy."""
OWN_MANIFESTS = ".store.json"
"""File in the run folder: the manifests that this folder has written or was fetched from."""
_MANIFEST = re.compile(r"(\d{8})-([0-9a-f]{64})\.json")


@dataclass(frozen=True)
class _File:
    digest: str
    size: int


class RunCopy:
    """The copy of the run in ``folder``. Not for use by several threads at once."""

    def __init__(self, address: str, name: str, folder: Path, n_kept: int) -> None:
        """
        Args:
            address: of the store, such as ``s3://bucket/prefix?region=eu-central-1``.
            name: the run's.
            n_kept: how many of the last manifests stay.

        Raises:
            UserError: ``check_address`` refuses the address.
        """
        self._store = open_store(address, name)
        self._folder, self._n_kept = folder, n_kept
        self._stored_sizes: dict[str, int] | None = None
        """Sizes of the files in the store, by digest; None: not requested yet."""
        self._digests: dict[str, tuple[tuple[int, int, int], _File]] = {}
        """Digests of local files, with the file's inode, size and time of change."""

    # ---- sending -------------------------------------------------------------------------------------

    def send(self) -> None:
        """Update the copy to the current run folder. Files may be added, replaced and appended to meanwhile.

        Raises:
            OSError: the store cannot be reached or refuses, or a file was removed while it was sent. The copy stays
                unchanged.
            UserError: another machine has written to the copy meanwhile.
        """
        try:
            self._send()
        except OSError:
            self._stored_sizes = None  # request anew what has been sent
            raise

    def _send(self) -> None:
        manifests = self._list_manifests()
        self._refuse_others(manifests)
        if self._stored_sizes is None:
            if isinstance(self._store.base_fs, fs.LocalFileSystem):  # object stores have no folders
                for store_folder in (FILES, MANIFESTS):
                    Path(self._store.base_path, store_folder).mkdir(parents=True, exist_ok=True)
            self._stored_sizes = self._sizes(FILES)
        files = {path.relative_to(self._folder).as_posix(): self._send_file(path) for path in self._local_files()}
        content = json.dumps(
            {"format": FORMAT, "files": {name: [file.digest, file.size] for name, file in sorted(files.items())}},
            indent=1,
        ).encode()
        digest = hashlib.sha256(content).hexdigest()
        if manifests and manifests[-1].endswith(f"-{digest}.json"):
            return
        number = 1 + max((int(name[:8]) for name in manifests), default=0)
        name = f"{number:08d}-{digest}.json"
        own_manifests = self._own_manifests()
        # Recorded first: if this process dies in between, its own manifest must not look like another machine's.
        write_json(self._folder / OWN_MANIFESTS, {"manifests": [*own_manifests[-self._n_kept :], name]})
        self._write(f"{MANIFESTS}/{name}", [content])
        self._remove_old([*manifests, name])

    def _local_files(self) -> Iterator[Path]:
        for parent, folders, names in os.walk(self._folder):  # skips folders that are removed meanwhile
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if parent == str(self._folder) and "variants" in folders:
                folders.remove("variants")  # they have copies of their own
            yield from (
                Path(parent, name) for name in sorted(names) if not name.startswith(".") and not name.endswith(".part")
            )

    def _send_file(self, path: Path) -> _File:
        """Send a file as it is now, if its content is not stored yet. Later changes have no effect: a file that is
        appended to is read up to its earlier size, and one that is replaced stays open."""
        assert self._stored_sizes is not None
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            signature = (status.st_ino, status.st_size, status.st_mtime_ns)
            cached = self._digests.get(str(path))
            if cached is None or cached[0] != signature:
                digest = hashlib.sha256()
                for chunk in _chunks(stream, status.st_size):
                    digest.update(chunk)
                cached = self._digests[str(path)] = signature, _File(digest.hexdigest(), status.st_size)
            file = cached[1]
            if self._stored_sizes.get(file.digest) != file.size:
                stream.seek(0)
                self._write(f"{FILES}/{file.digest}", _chunks(stream, file.size))
                self._stored_sizes[file.digest] = file.size
        return file

    def _write(self, path: str, chunks: Iterable[bytes]) -> None:
        with self._store.open_output_stream(path) as output:
            for chunk in chunks:
                output.write(chunk)

    def _remove_old(self, manifests: list[str]) -> None:
        """Remove old manifests, and the files that no other manifest names."""
        assert self._stored_sizes is not None
        for older in manifests[: -self._n_kept]:
            self._store.delete_file(f"{MANIFESTS}/{older}")
        digests_in_use: set[str] = set()
        for name in manifests[-self._n_kept :]:
            content = self._read_manifest(name)
            digests_in_use |= {file.digest for file in content.values()} if content is not None else set()
        for digest in self._stored_sizes.keys() - digests_in_use:
            self._store.delete_file(f"{FILES}/{digest}")
            del self._stored_sizes[digest]

    # ---- fetching ------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Before a run begins or resumes: where the folder has no run, fetch the last complete copy, if there is one.

        Raises:
            UserError: the store cannot be reached, and the folder is empty: the run may be there. Or the store has a
                later state than the folder, or a newer or foreign format, or no complete copy.
        """
        has_run = (self._folder / "config.yaml").is_file()
        try:
            manifests = self._list_manifests()
            if has_run:
                self._refuse_others(manifests)
            elif manifests:
                self._fetch(manifests)
        except OSError as error:
            reason = printable(first_line(error))
            if not has_run:
                raise UserError(f"{KEY} cannot be read, and the run may be there: {reason}") from error
            logger.warning(f"the store cannot be reached, and the run continues from its folder: {reason}")

    def _fetch(self, manifests: list[str]) -> None:
        arriving = self._folder / ".arriving"
        for name in reversed(manifests):
            files = self._read_manifest(name)
            if files is None:
                logger.warning(f"refused {name} in the store: it is torn or altered, its checksum differs")
                continue
            shutil.rmtree(arriving, ignore_errors=True)
            broken = next((path for path, file in files.items() if not self._fetch_file(file, arriving / path)), None)
            if broken is not None:
                logger.warning(f"refused {name} in the store: {broken} is missing, torn or altered")
                continue
            for entry in sorted(arriving.iterdir(), key=lambda entry: entry.name == "config.yaml"):
                target = self._folder / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(entry, target)
            arriving.rmdir()
            write_json(self._folder / OWN_MANIFESTS, {"manifests": [name]})
            size = sum(file.size for file in files.values())
            logger.info(f"fetched the run from the store: {len(files)} files, {size / 2**20:.1f} MiB")
            return
        shutil.rmtree(arriving, ignore_errors=True)
        raise UserError(f"{KEY} has this run, and no copy of it is complete")

    def _fetch_file(self, file: _File, target: Path) -> bool:
        """Whether the file arrived unchanged."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.copy_files(f"{FILES}/{file.digest}", str(target), self._store, fs.LocalFileSystem(), chunk_size=CHUNK)
        except FileNotFoundError:
            return False
        to_disk(target)
        with target.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.digest

    # ---- both ----------------------------------------------------------------------------------------

    def _sizes(self, folder: str) -> dict[str, int]:
        """Sizes of the files in a folder of the store, by name."""
        infos = self._store.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def _list_manifests(self) -> list[str]:
        """Names of all manifests, the last one last."""
        return sorted(name for name in self._sizes(MANIFESTS) if _MANIFEST.fullmatch(name))

    def _own_manifests(self) -> list[str]:
        file = self._folder / OWN_MANIFESTS
        return [str(name) for name in read_json(file)["manifests"]] if file.is_file() else []

    def _refuse_others(self, manifests: list[str]) -> None:
        if manifests and manifests[-1] not in self._own_manifests():
            raise UserError(
                f"{KEY} has a later state of this run than {self._folder}, from another machine: "
                "remove the folder to resume from there, or give the run another name (name=...)"
            )

    def _read_manifest(self, name: str) -> dict[str, _File] | None:
        """The files that it names; None: its content has changed since it was written.

        Raises:
            UserError: of another format, or it names files outside of a run folder.
        """
        with self._store.open_input_stream(f"{MANIFESTS}/{name}") as stream:
            content = stream.read()
        match = _MANIFEST.fullmatch(name)
        if match is None or hashlib.sha256(content).hexdigest() != match[2]:
            return None
        manifest = json.loads(content)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            version = manifest.get("format") if isinstance(manifest, dict) else None
            raise UserError(f"{name} in the store has the format {version}; this version reads {FORMAT} only")
        files = {path: _File(str(digest), int(size)) for path, (digest, size) in manifest["files"].items()}
        for path, file in files.items():
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or not re.fullmatch("[0-9a-f]{64}", file.digest):
                raise UserError(f"{name} in the store names '{printable(path)}', which is no file of a run")
        return files


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes.

    Raises:
        OSError: there are fewer: the file was truncated.
    """
    while size:
        chunk = stream.read(min(CHUNK, size))
        if not chunk:
            raise OSError(f"{stream.name} was cut while it was sent")
        size -= len(chunk)
        yield chunk
