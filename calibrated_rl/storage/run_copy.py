"""The copy of a run in a store (S3, Google Cloud Storage, a file system that others see), to go on from elsewhere.

Below the store's prefix and the run's name lie

- ``files/SHA256``: the content of files, each under its digest, so that none is ever changed and what is there already
  is not sent again;
- ``manifests/NUMBER-SHA256.json``: which files the run folder had, with their sizes and digests. One is written when
  all of its files are there: what it names is the copy, whole, on stores that cannot rename, too.

The last manifests are kept, and the files that they name. A manifest or a file whose content is not that of its name
is refused, and the manifest before it is taken. Credentials come from the environment (``AWS_ACCESS_KEY_ID`` and
others, or what the machine has been given); an address with credentials in it is refused.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.storage.files import read_json, to_disk, write_json

FORMAT = 1
"""Raised whenever another program would misread or miss something."""
REQUEST_TIMEOUT_S = 10.0
"""A store that does not send or take a byte for so long is out of reach; the run goes on without it."""
ATTEMPTS = 3
"""Tries of one request to S3, before the copy is given up until the next checkpoint."""
CHUNK = 2**23
"""Bytes of a file in memory at once."""
KNOWN = ".store.json"
"""In the run folder: the manifests that this folder has written or come from."""
_MANIFEST = re.compile(r"(\d{8})-([0-9a-f]{64})\.json")
_OPTIONS = {"s3": ("region", "scheme", "endpoint_override"), "gs": ("scheme", "endpoint_override"), "file": ()}


@dataclass(frozen=True)
class _File:
    digest: str
    size: int


def check_address(address: str) -> None:
    """Refuse an address that is no store's, without asking the store.

    Raises:
        UserError: says what is wrong, never what a credential is.
    """
    key = "training.checkpoint_store"
    parts = urlsplit(address)
    options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if "@" in parts.netloc or any("key" in name or "token" in name or "secret" in name for name in options):
        raise UserError(f"{key} has credentials in it: give them in the environment, such as AWS_ACCESS_KEY_ID")
    if parts.scheme not in _OPTIONS:
        raise UserError(f"{key} is '{printable(address)}': write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH")
    known = _OPTIONS[parts.scheme]
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{key}: unknown option '{printable(unknown[0])}'; there are: {', '.join(known) or 'none'}")
    if parts.scheme == "file" and parts.netloc:
        raise UserError(f"{key} is '{printable(address)}': write file:///PATH, with three strokes")
    if not (parts.path if parts.scheme == "file" else parts.netloc).strip("/"):
        what = "folder" if parts.scheme == "file" else "bucket"
        raise UserError(f"{key} is '{printable(address)}': it names no {what}")


def _open(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of ``address``, and the path in it."""
    parts = urlsplit(address)
    options, place = dict(parse_qsl(parts.query)), f"{parts.netloc}{parts.path}".rstrip("/")
    # FileSystem.from_uri has no way to say how long to wait.
    if parts.scheme == "s3":
        timeouts = {"connect_timeout": REQUEST_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        return fs.S3FileSystem(**options, **timeouts, retry_strategy=retries), place
    if parts.scheme == "gs":
        return fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=ATTEMPTS * REQUEST_TIMEOUT_S)), place
    return fs.LocalFileSystem(), place


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
        check_address(address)
        self._filesystem, base = _open(address)
        self._files, self._manifests = f"{base}/{name}/files", f"{base}/{name}/manifests"
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
            if isinstance(self._filesystem, fs.LocalFileSystem):  # object stores have no folders
                for place in (self._files, self._manifests):
                    self._filesystem.create_dir(place, recursive=True)
            self._there = {Path(info.path).name: info.size for info in self._list(self._files)}
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
        self._write(f"{self._manifests}/{name}", [content])
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
                self._write(f"{self._files}/{file.digest}", _chunks(stream, file.size))
                self._there[file.digest] = file.size
        return file

    def _write(self, path: str, chunks: Any) -> None:
        with self._filesystem.open_output_stream(path) as out:
            for chunk in chunks:
                out.write(chunk)

    def _tidy(self, manifests: list[str]) -> None:
        """Remove manifests that are too old, and the files that none of the others names."""
        assert self._there is not None
        for old in manifests[: -self._kept]:
            self._filesystem.delete_file(f"{self._manifests}/{old}")
        wanted: set[str] = set()
        for name in manifests[-self._kept :]:
            content = self._read_manifest(name)
            wanted |= {file.digest for file in content.values()} if content is not None else set()
        for digest in self._there.keys() - wanted:
            self._filesystem.delete_file(f"{self._files}/{digest}")
            del self._there[digest]

    # ---- fetching ------------------------------------------------------------------------------------

    def bring_down(self, say: Callable[[str], None]) -> None:
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
                self._fetch(manifests, say)
        except OSError as error:
            reason = printable(first_line(error))
            if not begun:
                raise UserError(
                    f"training.checkpoint_store cannot be read, and the run may be there: {reason}"
                ) from error
            say(f"the store cannot be reached, and the run goes on from its folder: {reason}")

    def _fetch(self, manifests: list[str], say: Callable[[str], None]) -> None:
        arriving = self._folder / ".arriving"
        for name in reversed(manifests):
            files = self._read_manifest(name)
            if files is None:
                say(f"refused: {name} in the store is torn or altered: its checksum differs")
                continue
            shutil.rmtree(arriving, ignore_errors=True)
            broken = next((path for path, file in files.items() if not self._fetch_file(file, arriving / path)), None)
            if broken is not None:
                say(f"refused: {name} in the store: {broken} is missing, torn or altered")
                continue
            for entry in sorted(arriving.iterdir(), key=lambda entry: entry.name == "config.yaml"):
                target = self._folder / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(entry, target)
            arriving.rmdir()
            write_json(self._folder / KNOWN, {"manifests": [name]})
            size = sum(file.size for file in files.values())
            say(f"fetched the run from the store: {len(files)} files, {size / 2**20:.1f} MiB")
            return
        shutil.rmtree(arriving, ignore_errors=True)
        raise UserError("training.checkpoint_store holds this run, and no copy of it is whole")

    def _fetch_file(self, file: _File, target: Path) -> bool:
        """Whether the file came as it was sent."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with self._filesystem.open_input_stream(f"{self._files}/{file.digest}") as stream, target.open("wb") as out:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
        except FileNotFoundError:
            return False
        to_disk(target)
        return digest.hexdigest() == file.digest

    # ---- both ----------------------------------------------------------------------------------------

    def _list(self, place: str) -> list[Any]:
        infos = self._filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True))
        return [info for info in infos if info.type == fs.FileType.File]

    def _list_manifests(self) -> list[str]:
        """Names of all manifests, the last one last."""
        return sorted(name for info in self._list(self._manifests) if _MANIFEST.fullmatch(name := Path(info.path).name))

    def _known(self) -> list[str]:
        file = self._folder / KNOWN
        return [str(name) for name in read_json(file)["manifests"]] if file.is_file() else []

    def _refuse_others(self, manifests: list[str]) -> None:
        if manifests and manifests[-1] not in self._known():
            raise UserError(
                f"training.checkpoint_store holds a later state of this run than {self._folder}, from another machine: "
                "remove the folder to go on from there, or give the run another name (name=...)"
            )

    def _read_manifest(self, name: str) -> dict[str, _File] | None:
        """The files that it names; None: it is not as it was written.

        Raises:
            UserError: of another format, or it names files outside of a run folder.
        """
        with self._filesystem.open_input_stream(f"{self._manifests}/{name}") as stream:
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
