"""Parts named by import path: ``package.module:Class`` in a YAML file is all the registration there is.

A component is a class with a frozen dataclass ``Config`` inside; it is built as ``Class(Class.Config(...))``.
"""

import difflib
import importlib
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from calibrated_rl.components import user_files
from calibrated_rl.components.user_code import UserCodeError, call, described, exception_text, lines_of_users
from calibrated_rl.errors import UserError, printable
from calibrated_rl.settings.fields import Key, NotAllowed, from_plain, hints_of, refuse, shown, valid_keys
from calibrated_rl.settings.moved import moved_hint
from calibrated_rl.settings.secrets import is_secret, refuse_hidden

__all__ = ["build", "configured", "describe_config_error", "import_path", "strict_config", "valid_keys"]


def import_path(path: str) -> Any:
    """Return the object that ``package.module:Name`` or ``folder/file.py:Name`` names (``user_files.py``).

    Raises:
        UserError: the path is malformed, or the module or the name in it does not exist, or the module cannot be
            imported; the message then names the line.
    """
    module_name, separator, name = path.rpartition(":")
    if not separator or not module_name or not name:
        raise UserError(f"'{path}' is not an import path: write package.module:Class or file.py:Class")
    file = Path(module_name).expanduser().resolve() if module_name.endswith(".py") else None
    if file is None and (module_name.startswith(".") or "/" in module_name):
        raise UserError(f"'{path}' is no import path: write package.module:Class or file.py:Class{_file_like(path)}")
    module = _module(path, module_name if file is None else user_files.module_name(_readable(path, file)), file)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, [each for each in dir(module) if not each.startswith("__")], n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"'{path}': {file or f'module {module_name}'} has no '{name}'{hint}")
    return getattr(module, name)


def located(path: str) -> str:
    """The same import path with a file's absolute path, for processes with another working directory."""
    module_name, _, name = path.rpartition(":")
    return f"{Path(module_name).expanduser().resolve()}:{name}" if module_name.endswith(".py") else path


def _file_like(path: str) -> str:
    """A hint where a file exists that the user may have meant."""
    module_name, _, name = path.rpartition(":")
    stem = module_name.strip().removesuffix(".py")
    for file in dict.fromkeys((f"{stem}.py", f"{stem.replace('.', '/')}.py")):
        if Path(file).expanduser().is_file():
            return f"; did you mean '{file}:{name}'?"
    return ""


def _readable(path: str, file: Path) -> Path:
    try:
        with file.open("rb"):
            return file
    except FileNotFoundError as error:
        raise UserError(f"'{path}': there is no file {file}") from error
    except OSError as error:
        raise UserError(f"'{path}': {file} cannot be read ({error.strerror})") from error


def _module(path: str, name: str, file: Path | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        missing_module = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing_module and f"{name}.".startswith(f"{missing_module}."):
            hint = moved_hint(path) or _file_like(path)
            raise UserError(f"'{path}' cannot be imported: {error}{hint}") from error
        if file is None and (name == "calibrated_rl" or name.startswith("calibrated_rl.")) and not missing_module:
            raise
        raise _not_imported(path, error, missing_module, file) from error


def _not_imported(path: str, error: BaseException, missing_module: str | None, file: Path | None) -> UserCodeError:
    user_lines = lines_of_users(error)
    line_note = f" ({user_lines[-1]})" if user_lines else ""
    hint = ""
    if file is not None and missing_module and (file.parent / f"{missing_module.partition('.')[0]}.py").is_file():
        hint = (
            f"; {missing_module}.py is in the same folder: write 'from .{missing_module} import ...', or put its "
            "folder on PYTHONPATH"
        )
    elif file is not None and isinstance(error, ImportError) and (missing_module or "").startswith(user_files.PREFIX):
        hint = (
            "; a file can import the files of its own folder, as 'from .words import ...', and nothing above it:  "
            "install the package, or put it on PYTHONPATH, and write package.module:Class"
        )
    failed = UserCodeError(f"'{path}' cannot be imported: {_without_prefix(exception_text(error))}{line_note}{hint}")
    failed.details = "".join(traceback.format_exception(error))
    return failed


def _without_prefix(text: str) -> str:
    """Without the names that ``user_files`` gives to folders: they are long, and mean nothing to the user."""
    return re.sub(rf"{re.escape(user_files.PREFIX)}(_\w*\.?)?", "", text)


def strict_config(cls: Any, values: Mapping[str, Any] | None, location: str) -> Any:
    """Build the frozen dataclass ``cls`` from ``values``; what its annotations do not allow is refused by name.

    References to the environment (``${oc.env:NAME}``) are looked up here.

    Raises:
        UserError: names each such key, the ``location`` it was read from, and what is allowed or nearest; or what is
            wrong with ``cls`` itself, see ``settings.hints_of``.
    """
    try:
        hints_of(cls)
    except UserError as error:
        raise UserError(f"{location}: {error}") from error
    if not isinstance(values or {}, Mapping):
        raise UserError(f"{location}: is {shown(values)}: write settings as key: value")
    refuse_hidden(values or {}, location)
    try:
        return from_plain(cls, looked_up(values or {}, location))
    except NotAllowed as error:
        refuse(error.problems, lambda key: location)
    raise AssertionError("a refusal names its problems")


def looked_up(values: Mapping[str, Any], location: str) -> dict[str, Any]:
    """``values`` with references (``${...}``) resolved.

    Raises:
        UserError: a reference cannot be resolved.
    """
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(describe_config_error(error, location)) from error
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def describe_config_error(error: OmegaConfBaseException, location: str | Callable[[Key], str]) -> str:
    """One line for a value that cannot be looked up (``${...}``): key, place and remedy.

    Args:
        location: file and position, or a function that gives those of a key.
    """
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
    reason = re.sub(r"^\w+Error raised while resolving interpolation: ", "", str(error).strip().splitlines()[0])
    if (absent := re.fullmatch(r"\"Environment variable '(.*)' not found\"", reason)) is not None:
        advice = "" if is_secret(key) else f", or write ${{oc.env:{absent[1]},DEFAULT}}"
        reason = f"the environment variable {absent[1]} is not set; set it{advice}"
    key_parts = (key_part for key_part in re.split(r"[.\[\]]+", key) if key_part)
    place = (
        location
        if isinstance(location, str)
        else location(tuple(int(key_part) if key_part.isdigit() else key_part for key_part in key_parts))
    )
    return f"{place}: key '{printable(key)}': {printable(reason)}"


def build(path: str, values: Mapping[str, Any] | None = None, location: str = "config", **parts: Any) -> Any:
    """Import the component at ``path`` and build it from ``values`` and the ``parts`` it needs."""
    cls, config = configured(path, values, location)
    return call(cls, lambda: f"{location}: making {described(cls, 'part')}", cls, config, **parts)


def configured(path: str, values: Mapping[str, Any] | None = None, location: str = "config") -> tuple[Any, Any]:
    """Import the component at ``path`` and its settings from ``values``, without building it.

    Raises:
        UserError: there is no such component, or it does not take these settings.
    """
    cls = import_path(path)
    if not isinstance(cls, type):
        raise UserError(
            f"{location}: '{path}' is no class: a component is a class with a frozen dataclass Config inside"
        )
    if not hasattr(cls, "Config"):
        raise UserError(f"{location}: '{path}' is not a component: it has no Config dataclass")
    description = f"{location} ({path})"
    return cls, call(cls, lambda: f"{description}: the settings", strict_config, cls.Config, values, description)
