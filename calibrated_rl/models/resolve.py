"""Resolves a model spec to a folder that transformers and vLLM both load.

A folder contains ``config.json``, safetensors, and a tokenizer with a chat template. It comes from

- a Python package: ``smollm2-135m``, ``gemma3-270m`` (``gguf.py``), converted once and stored in a cache;
- a folder, or the hub: used as it is.

The tiny model is created on the spot (``tiny.py``). Code that comes with a model is never run (``trust_remote_code``
stays off).
"""

from pathlib import Path

from calibrated_rl.errors import UserError
from calibrated_rl.models.checks import check_folder
from calibrated_rl.models.gguf import PACKAGED, convert_gguf


def resolve_model(spec: str, cache: Path, *, offline: bool = False, chat_template: bool = True) -> Path:
    """Return the folder of the model that ``spec`` names.

    Args:
        spec: a name in ``PACKAGED``, a local folder, or a model's name on the hub.
        cache: folder of converted models, one folder each.
        offline: look for hub models only in the hub's local cache.
        chat_template: the model must come with one.

    Raises:
        UserError: the package is not installed, the folder is incomplete or has no chat template, or the
            hub does not have (or offline: the machine does not have) the model.
    """
    if spec in PACKAGED:
        folder = cache / spec
        if not (folder / "config.json").is_file():
            convert_gguf(spec, folder)
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

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(spec, allow_patterns=patterns, local_files_only=offline))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model '{spec}': no local folder, and the hub does not give it: {reason}") from error
