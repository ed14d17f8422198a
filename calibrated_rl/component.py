"""Parts named by import path: ``package.module:Class`` in a YAML file is all the registration there is.

A component is a class with a frozen dataclass ``Config`` inside; it is built as ``Class(Class.Config(...))``.
"""

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.errors import UserError
from calibrated_rl.secrets import refuse_hidden


def import_path(path: str) -> Any:
    """Return the object that ``package.module:Name`` or ``folder/file.py:Name`` names.

    Raises:
        UserError: the path is malformed, or the module or the name in it does not exist.
    """
    module_name, separator, name = path.rpartition(":")
    if not separator or not module_name or not name:
        raise UserError(f"'{path}' is not an import path: write package.module:Class or file.py:Class")
    if module_name.endswith(".py"):
        file = Path(module_name).resolve()
        if not file.is_file():
            raise UserError(f"'{path}': there is no file {file}")
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
        module_name = file.stem
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"'{path}' cannot be imported: {error}") from error
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"'{path}': module {module_name} has no '{name}'{hint}")
    return getattr(module, name)


def strict_config(cls: type, values: Mapping[str, Any] | None, where: str) -> Any:
    """Build the dataclass ``cls`` from ``values``; an unknown key or a wrong type is refused by name.

    Raises:
        UserError: names the key, ``where`` it was read, and the nearest valid key.
    """
    refuse_hidden(values or {}, where)
    schema = OmegaConf.structured(cls)
    try:
        merged = OmegaConf.merge(schema, OmegaConf.create(dict(values or {})))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, cls, where)) from error


def describe_config_error(error: OmegaConfBaseException, cls: type, where: str) -> str:
    """One line for a config error: the key, the file, and the nearest valid key."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
    first_line = str(error).strip().splitlines()[0]
    if "not in" in first_line:
        valid = sorted(valid_keys(cls))
        leaf = key.split(".")[-1]
        close = difflib.get_close_matches(key, valid, n=1) or [k for k in valid if k.split(".")[-1] == leaf]
        close = close or difflib.get_close_matches(leaf, valid, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; valid keys: {', '.join(valid[:12])}"
        return f"{where}: unknown key '{key}'{hint}"
    return f"{where}: key '{key}': {first_line}"


def valid_keys(cls: type, prefix: str = "") -> set[str]:
    """All dotted keys of a (nested) config dataclass."""
    keys: set[str] = set()
    for field in dataclasses.fields(cls):
        keys.add(prefix + field.name)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys |= valid_keys(field.type, f"{prefix}{field.name}.")
    return keys


def build(path: str, values: Mapping[str, Any] | None = None, where: str = "config", **parts: Any) -> Any:
    """Import the component at ``path`` and build it from ``values`` and the ``parts`` it needs."""
    cls = import_path(path)
    if not hasattr(cls, "Config"):
        raise UserError(f"'{path}' is not a component: it has no Config dataclass")
    return cls(strict_config(cls.Config, values, f"{where} ({path})"), **parts)
