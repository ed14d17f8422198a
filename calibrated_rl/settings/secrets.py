"""Secrets in settings: which keys contain one, who may read the file, and what is written down instead.

A setting is a secret if its key says so (``token``, ``password``, ``api_key``, ...). The advised way to give one is a
reference to an environment variable, ``${oc.env:NAME}``. A reference stays one in the config and in everything that is
written; what it stands for is looked up when the part that needs it is built. A value that is spelt out is accepted
only from a file that nobody else can read, and is never written down.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from calibrated_rl.errors import UserError

HIDDEN = "*** (a secret is not written down)"

_WORDS = {"password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"}
_ENDINGS = ("token", "apikey", "api_key", "access_key", "private_key", "authorization", "auth")
_ENTRY = re.compile(r"\s*([\w.\-]+)\s*=\s*(.*)", re.DOTALL)
"""``key=value``, as in the changes of a variant."""
_TOKENS_OF_TEXT = {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "end", "start", "stop", "per", "max", "min"}
"""Before ``token``: those that models read and write."""


def is_secret(key: str) -> bool:
    """Whether ``key``, dotted or not, names a secret: ``human_config.api_key``, ``hubToken``; not ``max_tokens``."""
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rsplit(".", 1)[-1])
    words = [word for word in re.split(r"[^A-Za-z0-9]+", last.lower()) if word]
    if _WORDS.intersection(words):
        return True
    ends = any(f"_{'_'.join(words)}".endswith(f"_{ending}") for ending in _ENDINGS)
    return ends and not (words[-1] == "token" and _TOKENS_OF_TEXT.intersection(words[:-1]))


def is_reference(value: Any) -> bool:
    """Whether ``value`` names an environment variable and spells nothing out, no default either."""
    return isinstance(value, str) and re.fullmatch(r"\$\{oc\.env:[^{},]+\}", value) is not None


def _spelt_out(value: Any) -> bool:
    return value not in (None, "", HIDDEN) and not isinstance(value, bool) and not is_reference(value)


def _each_secret(tree: Any, change: Callable[[str, Any], Any], key: str = "", inside: bool = False) -> Any:
    """``tree`` with ``change(dotted key, value)`` in the place of each secret. What lies below a key that names one is
    one too."""
    if isinstance(tree, Mapping):
        return {
            name: _each_secret(part, change, f"{key}.{name}" if key else str(name), inside or is_secret(str(name)))
            for name, part in tree.items()
        }
    if isinstance(tree, list):
        return [_each_secret(part, change, key, inside) for part in tree]
    if inside:
        return change(key, tree)
    if isinstance(tree, str) and (entry := _ENTRY.fullmatch(tree)) and is_secret(entry[1]):
        return f"{entry[1]}={change(f'{key}: {entry[1]}', entry[2])}"
    return tree


def masked(tree: Any) -> Any:
    """Plain data ``tree`` with ``HIDDEN`` for each secret that is spelt out; references stay."""
    return _each_secret(tree, lambda key, value: HIDDEN if _spelt_out(value) else value)


def keep_references(settings: Any) -> Any:
    """The OmegaConf tree ``settings`` in which references that stand for secrets are plain text: they are not resolved
    with the rest, but where the part that they are meant for is built (``component.strict_config``)."""
    plain = OmegaConf.to_container(settings)
    escaped = _each_secret(plain, lambda key, value: f"\\{value}" if is_reference(value) else value)
    # A merge copies the whole tree, which takes as long as all else that is done with a config.
    return settings if escaped == plain else OmegaConf.merge(settings, escaped)


def refuse_readable_secrets(settings: Mapping[str, Any], location: str, file: Path | None = None) -> None:
    """Refuse secrets that are spelt out where others can read them.

    Args:
        settings: plain data, references (``${...}``) as they are written.
        file: where it comes from; None for a command line, which every user of the machine can list.

    Raises:
        UserError: names place and key, never the value.
    """
    if file is not None and not file.stat().st_mode & 0o044:
        return
    secret_keys: list[str] = []
    _each_secret(settings, lambda key, value: secret_keys.append(key) if _spelt_out(value) else None)
    if secret_keys:
        readers = "others can read the command line" if file is None else "others can read this file"
        remedy = "" if file is None else ", or take from others the right to read it (chmod 600)"
        raise UserError(
            f"{location}: '{secret_keys[0]}' is a secret, and {readers}; put it into an environment variable and write "
            f"${{oc.env:NAME}} instead{remedy}"
        )


def refuse_hidden(settings: Mapping[str, Any], location: str) -> None:
    """Refuse settings of a saved run with a masked secret, which cannot be used.

    Raises:
        UserError: names the key.
    """
    for key, value in settings.items():
        if value == HIDDEN:
            raise UserError(f"{location}: the secret '{key}' was not stored with the run; give it as ${{oc.env:NAME}}")
        if isinstance(value, Mapping):
            refuse_hidden(value, location)


def has_absent_secrets(values: Mapping[str, Any]) -> bool:
    """Whether a secret is missing, as where a run is only inspected: the part that needs it reports that."""
    for value in values.values():
        if isinstance(value, Mapping):
            if has_absent_secrets(value):
                return True
        elif value == HIDDEN or (is_reference(value) and value[len("${oc.env:") : -1].strip() not in os.environ):
            return True
    return False
