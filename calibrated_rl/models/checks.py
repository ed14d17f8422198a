"""Checks that the folder of a model is complete, from the headers and metadata of its files, before it is loaded."""

import re
from collections.abc import Sequence
from pathlib import Path

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.models.shape import read_language_config, vocabulary_size
from calibrated_rl.models.tokenizer import has_chat_template, read_tokenizer, vocabulary_of
from calibrated_rl.storage.checksums import NAME as CHECKSUMS
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.storage.files import read_json

_PLACEHOLDER = re.compile("image|audio|video", re.IGNORECASE)
"""Names of tokens for pictures and sound (Gemma's 262,144th, ``<image_soft_token>``)."""


def check_folder(folder: Path, name: str, *, chat_template: bool = True) -> None:
    """Refuse a folder that could not be served or trained.

    Args:
        chat_template: there must be one.

    Raises:
        UserError: config, weights, tokenizer or chat template are missing or unreadable, a file is not as it was
            written, or the tokenizer has more tokens than the model.
    """
    if not folder.is_dir():
        raise UserError(f"model '{name}': {folder} is not a folder")
    if (folder / CHECKSUMS).is_file():
        check_checksums(folder)
    read_language_config(folder)
    if not (weights := sorted(folder.glob("*.safetensors"))):
        raise UserError(f"model '{name}': {folder} contains no *.safetensors weights")
    _check_weights(weights, folder, name)
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"model '{name}': {folder} contains neither tokenizer.json nor tokenizer.model")
    if chat_template and not has_chat_template(folder):
        raise UserError(
            f"model '{name}': the tokenizer in {folder} has no chat template, so turns cannot be told apart; "
            "take an instruction-tuned model, or name a file in `chat_template`"
        )
    _check_vocabulary(folder, name)


def _check_weights(files: Sequence[Path], folder: Path, name: str) -> None:
    """Reads only the headers and sizes of the files.

    Raises:
        UserError: one of them is torn, or the index names one that is not there.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"model '{name}': {file} cannot be read as safetensors: {first_line(error)}") from error
    index = folder / "model.safetensors.index.json"
    weight_map = read_json(index).get("weight_map") if index.is_file() else None
    for file_name in sorted(set(weight_map.values())) if isinstance(weight_map, dict) else ():
        if not (folder / str(file_name)).is_file():
            raise UserError(f"model '{name}': {folder} has no {file_name}, which {index.name} names: it is not whole")


def _check_vocabulary(folder: Path, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding of. More embeddings than tokens are usual: they
    pad the vocabulary."""
    size = vocabulary_size(folder)
    has_json = (folder / "tokenizer.json").is_file()
    tokens = vocabulary_of(folder) if has_json else read_tokenizer(folder, name).get_vocab().items()
    beyond = {number: token for token, number in tokens if number >= size}
    # Text models have the place-holders of their multimodal siblings, which never occur here.
    beyond = {number: token for number, token in beyond.items() if not _PLACEHOLDER.search(token)}
    if beyond:
        highest = max(beyond)
        raise UserError(
            f"model '{name}': config.json in {folder} has a vocab_size of {size}, and the tokenizer's ids go to "
            f"{highest} ({printable(beyond[highest])!r}): resize the model's embeddings, with "
            f"model.resize_token_embeddings({highest + 1}) in transformers, and save it again, or remove the token"
        )
