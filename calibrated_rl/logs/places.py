"""Files by their names: one, several, a glob, a folder of a corpus, a data set of the Hugging Face hub."""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.logs.streams import ENDINGS

READ = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".arrow", ".feather")
"""Endings of the files of a folder that are read."""
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files by which Hugging Face datasets describes others."""
_ABOUT_UTTERANCES = ("corpus.json", "index.json", "conversations.json", "speakers.json", "users.json")
"""Files by which a ConvoKit corpus describes its utterances; logs like others in a folder without these."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT_NAME = re.compile(r"(train|training|test|validation|valid|dev)(?=[-_.])")


@dataclass(frozen=True, slots=True)
class Place:
    """A file to be read."""

    path: Path
    split: str = ""
    """What the data set itself calls the part that the file belongs to, such as ``train``."""


def places_of(names: Sequence[str]) -> list[Place]:
    """The files that ``names`` mean, each once, in their order; those of a glob or a folder by name.

    Raises:
        UserError: a name means none.
    """
    found: dict[Path, Place] = {}
    for name in names:
        for place in _of_name(name):
            found.setdefault(place.path.resolve(), place)
    return list(found.values())


def is_log_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with log files that are found by their names."""
    return path.is_dir() and next(_in_folder(path), None) is not None


def _of_name(name: str) -> list[Place]:
    path = Path(name).expanduser()
    if not path.exists() and glob.has_magic(name):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [place for match in matches for place in (_in_folder(match) if match.is_dir() else [Place(match)])]
        if not files:
            raise UserError(f"no file matches {name}")
        return files
    if path.is_dir():
        return _of_folder(path)
    if not path.exists() and _HUB_NAME.fullmatch(name) and not path.parent.exists():
        return _of_folder(_hub_folder(name))
    return [Place(path)]


def _of_folder(folder: Path) -> list[Place]:
    files = list(_in_folder(folder))
    if not files:
        raise UserError(
            f"{folder} is a folder without log files: wanted are files that end in {', '.join(READ)} (or these with "
            f"{', '.join(ENDINGS)}), a ConvoKit corpus, or a folder saved by Hugging Face datasets"
        )
    return files


def _in_folder(folder: Path, split: str = "") -> Iterator[Place]:
    """The log files of a folder: the utterances of a corpus, the files that ``datasets`` lists, or all that are known
    by their endings, in folders below it too."""
    if corpus := _utterances(folder):
        yield Place(corpus, split)
    elif (folder / "dataset_dict.json").is_file():
        for name in _listed(folder / "dataset_dict.json", "splits"):
            yield from _in_folder(folder / str(name), str(name))
    elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        for entry in _listed(folder / "state.json", "_data_files"):
            yield Place(folder / str(entry["filename"] if isinstance(entry, dict) else entry), split)
    else:
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder).parts
            if any(part.startswith((".", "_")) for part in inside) or not (file.is_file() and _is_log_name(file.name)):
                continue
            if not (_plain(file.name) in _ABOUT_UTTERANCES and _utterances(file.parent)):
                own_split = _SPLIT_NAME.match(file.name)
                yield Place(file, own_split[1] if own_split else "")


def _utterances(folder: Path) -> Path | None:
    """The utterances of a ConvoKit corpus, if ``folder`` has some."""
    files = [folder / f"utterances.{kind}{end}" for kind in ("jsonl", "json") for end in ("", *ENDINGS)]
    return next((file for file in files if file.is_file()), None)


def _plain(name: str) -> str:
    """In small letters, without the ending of its compression."""
    name = name.lower()
    return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)


def _is_log_name(name: str) -> bool:
    plain = _plain(name)
    is_cached = plain.startswith("cache-") and plain.endswith(".arrow")  # what datasets has computed of others
    return plain.endswith(READ) and plain not in _ABOUT and not is_cached


def _listed(file: Path, key: str) -> list[object]:
    try:
        entries = json.loads(file.read_bytes())[key]
        if isinstance(entries, list):
            return entries
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{file} does not have the list '{key}', as a folder saved by Hugging Face datasets has it")


def _hub_folder(name: str) -> Path:
    """The folder of a data set that is in the hub's local cache; nothing is downloaded.

    Raises:
        UserError: it is not there; says how to get it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except Exception as error:
        folder = name.rpartition("/")[2]
        raise UserError(
            f"{name} is no file or folder here, and no data set in the cache of the Hugging Face hub "
            f"({first_line(error)[:100]}); if it is one of the hub, download it: "
            f"hf download {name} --repo-type dataset --local-dir {folder}, and name the folder {folder}"
        ) from error
