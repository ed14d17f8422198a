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
from calibrated_rl.settings.moved import where_now
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
    """The same import path for processes with another working directory: a file by its full path."""
    module_name, _, name = path.rpartition(":")
    return f"{Path(module_name).expanduser().resolve()}:{name}" if module_name.endswith(".py") else path


def _file_like(path: str) -> str:
    """A hint where a file is there that may have been meant."""
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
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            hint = where_now(path) or _file_like(path)
            raise UserError(f"'{path}' cannot be imported: {error}{hint}") from error
        if file is None and (name == "calibrated_rl" or name.startswith("calibrated_rl.")) and not missing:
            raise
        raise _not_imported(path, error, missing, file) from error


def _not_imported(path: str, error: BaseException, missing: str | None, file: Path | None) -> UserCodeError:
    own = lines_of_users(error)
    where = f" ({own[-1]})" if own else ""
    hint = ""
    if file is not None and missing and (file.parent / f"{missing.partition('.')[0]}.py").is_file():
        hint = f"; {missing}.py stands beside it: write 'from .{missing} import ...', or put its folder on PYTHONPATH"
    elif file is not None and isinstance(error, ImportError) and (missing or "").startswith(user_files.PREFIX):
        hint = (
            "; a file reaches what stands beside it, as 'from .words import ...', and nothing above its folder: "
            "install the package, or put it on PYTHONPATH, and write package.module:Class"
        )
    failed = UserCodeError(f"'{path}' cannot be imported: {_without_prefix(exception_text(error))}{where}{hint}")
    failed.details = "".join(traceback.format_exception(error))
    return failed


def _without_prefix(text: str) -> str:
    """Without the names that ``user_files`` gives to folders: they are long, and nobody's."""
    return re.sub(rf"{re.escape(user_files.PREFIX)}(_\w*\.?)?", "", text)


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


def describe_config_error(error: OmegaConfBaseException, where: str | Callable[[Key], str]) -> str:
    """One line for a value that cannot be looked up (``${...}``): key, place and remedy.

    Args:
        where: the place, or what gives that of a key.
    """
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "?")
    reason = re.sub(r"^\w+Error raised while resolving interpolation: ", "", str(error).strip().splitlines()[0])
    if (absent := re.fullmatch(r"\"Environment variable '(.*)' not found\"", reason)) is not None:
        other = "" if is_secret(key) else f", or write ${{oc.env:{absent[1]},DEFAULT}}"
        reason = f"the environment variable {absent[1]} is not set; set it{other}"
    parts = (part for part in re.split(r"[.\[\]]+", key) if part)
    place = where if isinstance(where, str) else where(tuple(int(part) if part.isdigit() else part for part in parts))
    return f"{place}: key '{printable(key)}': {printable(reason)}"


def build(path: str, values: Mapping[str, Any] | None = None, where: str = "config", **parts: Any) -> Any:
    """Import the component at ``path`` and build it from ``values`` and the ``parts`` it needs."""
    cls, config = configured(path, values, where)
    return call(cls, lambda: f"{where}: making {described(cls, 'part')}", cls, config, **parts)


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
    told = f"{where} ({path})"
    return cls, call(cls, lambda: f"{told}: the settings", strict_config, cls.Config, values, told)
