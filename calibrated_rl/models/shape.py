"""What a model's ``config.json`` says: how large the model is, and how long its context. No weights are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.storage.files import read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model that its memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    """Inner size of the feed-forward part."""
    heads: int
    """Attention heads of a layer."""
    key_heads: int
    """Key heads of a layer: as many, or fewer, which several heads share."""
    keys: int
    """Size of a token's keys over all key heads of a layer."""
    vocabulary: int


def shape_of(folder: Path) -> ModelShape:
    """The shape of the language model in ``folder``, without loading it.

    Raises:
        UserError: transformers does not know this kind of model, or there are no weights.
    """
    import torch

    config = _text_config(folder)
    return _shape(config, parameter_bytes(folder) // (config.dtype or torch.float32).itemsize)


def shape_without_weights(path: Path) -> ModelShape:
    """The shape of a model of which there is only its ``config.json``, or the folder with it.

    Raises:
        UserError: transformers does not know this kind of model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(path)
    with torch.device("meta"):  # shapes without memory
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise UserError(f"{path} is no config of a causal language model: {first_line(error)}") from error
    return _shape(config.get_text_config(), sum(parameter.numel() for parameter in model.parameters()))


def _shape(config: Any, parameters: int) -> ModelShape:
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelShape(
        parameters=parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        key_heads=key_heads,
        keys=key_heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=config.vocab_size,
    )


def parameter_bytes(folder: Path) -> int:
    """Bytes of the weights on disk, in the precision they are stored in.

    Raises:
        UserError: the folder contains no safetensors.
    """
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if total == 0:
        raise UserError(f"{folder} contains no *.safetensors weights")
    return total


def vocabulary_size(folder: Path) -> int:
    """How many tokens the model in ``folder`` has embeddings of.

    Raises:
        UserError: there is no readable config, or it leaves the number to a kind that transformers does not know.
    """
    size = read_language_config(folder).get("vocab_size")
    # It is left out where it is what this kind of model has by default.
    return size if isinstance(size, int) else int(_text_config(folder).vocab_size)


def check_context(folder: Path, needed: int) -> None:
    """Refuse a model whose positions end before ``needed`` tokens.

    Raises:
        UserError: ``max_position_embeddings`` of the model's config is smaller than ``needed``.
    """
    limit = read_language_config(folder).get("max_position_embeddings")
    if isinstance(limit, int) and limit < needed:
        raise UserError(
            f"the model in {folder} has a context of {limit} tokens, and the run needs {needed}: "
            "shorten turns or dialogues, or take a model with a longer context"
        )


def read_config(folder: Path) -> Any:
    """The config of the model in ``folder``, as transformers reads it.

    Raises:
        UserError: transformers does not know this kind of model, or a setting of it is of another type.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the model in {folder} is of a kind that transformers does not know: {reason}") from error
    except (StrictDataclassError, TypeError, AttributeError) as error:
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{folder / 'config.json'} is no config of a model: {reason}") from error


def _text_config(folder: Path) -> Any:
    """The language model's config, with what ``config.json`` leaves to the kind of model."""
    return read_config(folder).get_text_config()


def read_language_config(folder: Path) -> dict[str, Any]:
    """The language model's part of ``config.json`` (multimodal models nest it), as it is written there.

    Raises:
        UserError: there is no such file, or it is not readable JSON.
    """
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    return text if isinstance(text, dict) else config
