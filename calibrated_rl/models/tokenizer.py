"""What a model's folder says of its tokenizer: the tokenizer itself, its tokens, whether there is a chat template."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError, printable
from calibrated_rl.models.folders import TEMPLATE
from calibrated_rl.storage.files import read_json


def read_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer in ``folder``; code that comes with it is not run.

    Raises:
        UserError: transformers cannot read it, or not without that code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = printable(str(error).strip().splitlines()[0])
        raise UserError(f"model '{name}': the tokenizer in {folder} cannot be read: {reason}") from error


def vocabulary_of(folder: Path) -> Iterator[tuple[str, int]]:
    """All tokens of the tokenizer in ``folder`` with their ids, as far as its files are JSON.

    Raises:
        UserError: they are not in the format of such files.
    """
    try:
        yield from _tokens_of(folder)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"the tokenizer's files in {folder} are not in their format") from error


def _tokens_of(folder: Path) -> Iterator[tuple[str, int]]:
    file = folder / "tokenizer.json"
    content = read_json(file) if file.is_file() else {}
    words = (content.get("model") or {}).get("vocab") or {}
    yield from words.items() if isinstance(words, dict) else ((word, at) for at, (word, *_) in enumerate(words))
    yield from ((token["content"], token["id"]) for token in content.get("added_tokens") or ())
    file = folder / "tokenizer_config.json"
    added = read_json(file).get("added_tokens_decoder") if file.is_file() else None
    yield from ((token["content"], int(number)) for number, token in (added or {}).items())


def has_chat_template(folder: Path) -> bool:
    """Whether there is one in a file of its own or in the tokenizer's settings."""
    if (folder / TEMPLATE).is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("chat_template"))
