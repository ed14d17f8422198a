"""Documents of any folder as targets: each text is cut between paragraphs into pieces of at most so many words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.data_set import draw_splits
from calibrated_rl.settings.fields import Name, NotNegative, Positive, Seed

ENDINGS = (".txt", ".md")
WANTED = f"wanted are texts, a file or a folder with files {', '.join(f'*{ending}' for ending in ENDINGS)}"


@dataclass(frozen=True)
class DocumentSource:
    """Which documents there are, and how they are split."""

    path: Name = "documents"
    """A file, or a folder whose files ``*.txt`` and ``*.md`` are read, in folders of it too."""
    fewest_words: Positive = 30
    """Of a piece; shorter ones are left out."""
    most_words: Positive = 120
    """Of a piece."""
    held_out: NotNegative = 40
    """Pieces of the held-out split; all pieces of a file are in one split."""
    monitor: NotNegative = 10
    """Pieces of the monitor split."""
    tuning: NotNegative = 10
    """Pieces of the tuning split; the rest is for training."""
    seed: Seed = 0
    """Draws the splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of a file."""

    file: str
    """Below the folder."""
    number: int
    """Which piece of its file."""
    text: str

    @property
    def id(self) -> str:
        """From its words."""
        return f"document-{blake2b(self.text.encode('utf-8', 'backslashreplace'), digest_size=8).hexdigest()}"


def read_documents(source: DocumentSource) -> tuple[list[Document], list[LogProblem]]:
    """All pieces, each text once, and the files that are no text.

    Raises:
        UserError: there is no such file, or no piece in it.
    """
    path = Path(source.path).expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}; {WANTED}")
    files = [path] if path.is_file() else sorted(file for ending in ENDINGS for file in path.rglob(f"*{ending}"))
    documents: dict[str, Document] = {}
    problems = []
    for file in files:
        name = file.name if path.is_file() else str(file.relative_to(path))
        try:
            content = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(LogProblem(str(file), 1, f"it cannot be read: {error}"))
            continue
        for number, text in enumerate(_pieces(content, source.fewest_words, source.most_words)):
            documents.setdefault(text, Document(file=name, number=number, text=text))
    if not documents:
        first = f" (first: {problems[0]})" if problems else ""
        raise UserError(f"{path} has no text of {source.fewest_words} to {source.most_words} words{first}; {WANTED}")
    return list(documents.values()), problems


def split_documents(documents: Sequence[Document], source: DocumentSource) -> dict[Split, list[Document]]:
    """The four splits, each in a fixed order. They are drawn file by file, so that no text is continued in another
    split; a split has at least as many pieces as its size, if the files suffice.

    Raises:
        UserError: no piece would be left for training.
    """
    sizes = {Split.HELD_OUT: source.held_out, Split.MONITOR: source.monitor, Split.TUNING: source.tuning}
    by_file: dict[str, list[Document]] = {}
    for document in documents:
        by_file.setdefault(document.file, []).append(document)
    # One split of files, of which each of the others takes what it needs.
    files = draw_splits("DocEdit-Chat", [*by_file], _AllFiles(source), lambda name: (name, name))[Split.CALIBRATION]
    splits: dict[Split, list[Document]] = {split: [] for split in Split}
    for split, size in sizes.items():
        while files and len(splits[split]) < size:
            splits[split] += by_file[files.pop(0)]
    splits[Split.CALIBRATION] = [document for name in files for document in by_file[name]]
    if not splits[Split.CALIBRATION]:
        raise UserError(
            f"DocEdit-Chat: held_out {source.held_out} + monitor {source.monitor} + tuning {source.tuning} leave "
            f"nothing of {len(documents)} pieces of {len(by_file)} files in {source.path} for training"
        )
    return splits


@dataclass(frozen=True)
class _AllFiles:
    """All in one split, in the order that the seed draws."""

    source: DocumentSource
    held_out: int = 0
    monitor: int = 0
    tuning: int = 0

    @property
    def path(self) -> str:
        return self.source.path

    @property
    def seed(self) -> int:
        return self.source.seed


def _pieces(content: str, fewest: int, most: int) -> Iterator[str]:
    """Neighbouring paragraphs, as many as fit into ``most`` words; longer paragraphs are left out."""
    paragraphs: list[str] = []
    words = 0
    for paragraph in [*(part.strip() for part in content.split("\n\n")), None]:
        count = most + 1 if paragraph is None else len(paragraph.split())
        if words + count > most:
            if words >= fewest:
                yield "\n\n".join(paragraphs)
            paragraphs, words = [], 0
        if paragraph and count <= most:
            paragraphs.append(paragraph)
            words += count
