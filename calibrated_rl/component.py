"""Parts named by import path: ``package.module:Class`` in a YAML file is all the registration there is.

A component is a class with a frozen dataclass ``Config`` inside; it is built as ``Class(Class.Config(...))``.
"""

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.errors import UserError, printable
from calibrated_rl.secrets import refuse_hidden
from calibrated_rl.settings import NotAllowed, from_plain, hints_of, refuse, shown, valid_keys

__all__ = ["build", "configured", "describe_config_error", "import_path", "strict_config", "valid_keys"]


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


def strict_config(cls: Any, values: Mapping[str, Any] | None, where: str) -> Any:
    """Build the frozen dataclass ``cls`` from ``values``; what its annotations do not allow is refused by name.

    References to the environment (``${oc.env:NAME}``) are looked up here.

    Raises:
        UserError: names each such key, ``where`` it was read, and what is allowed or nearest; or what is wrong with
            ``cls`` itself, see ``settings.hints_of``.
    """
    try:
        hints_of(cls)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not isinstance(values or {}, Mapping):
        raise UserError(f"{where}: is {shown(values)}: write settings as key: value")
    refuse_hidden(values or {}, where)
    try:
        return from_plain(cls, looked_up(values or {}, where))
    except NotAllowed as error:
        refuse(error.problems, lambda key: where)
    raise AssertionError("a refusal names its problems")


def looked_up(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``values`` with what references (``${...}``) stand for.

    Raises:
        UserError: one stands for nothing.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, where)) from error
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def describe_config_error(error: OmegaConfBaseException, where: str) -> str:
    """One line for a value that cannot be looked up (``${...}``): key and place."""
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
    return f"{where}: key '{printable(key)}': {printable(str(error).strip().splitlines()[0])}"


def build(path: str, values: Mapping[str, Any] | None = None, where: str = "config", **parts: Any) -> Any:
    """Import the component at ``path`` and build it from ``values`` and the ``parts`` it needs."""
    cls, config = configured(path, values, where)
    return cls(config, **parts)


def configured(path: str, values: Mapping[str, Any] | None = None, where: str = "config") -> tuple[Any, Any]:
    """Import the component at ``path`` and its settings from ``values``, without building it.

    Raises:
        UserError: there is no such component, or it does not take these settings.
    """
    cls = import_path(path)
    if not isinstance(cls, type):
        raise UserError(f"{where}: '{path}' is no class: a component is a class with a frozen dataclass Config inside")
    if not hasattr(cls, "Config"):
        raise UserError(f"{where}: '{path}' is not a component: it has no Config dataclass")
    return cls, strict_config(cls.Config, values, f"{where} ({path})")
