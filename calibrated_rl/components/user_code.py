"""Calls of users' code: an exception in it becomes one message that names the user's own line.

A task, a human, a reader, a method or a loss named by import path is called through ``call``. What it raises becomes a
``UserCodeError`` where a line of the user's raised it, or called what did. A mistake of this package stays what it is,
and so does what is meant for others: ``UserError``, ``PartLost``, failures of rollouts, of Ray and of a full disk, and
Ctrl-C.
"""

import inspect
import linecache
import site
import sys
import sysconfig
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from calibrated_rl.components.user_files import is_user_file
from calibrated_rl.errors import UserError, first_line, is_disk_full, printable

T = TypeVar("T")

PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(
    {
        str(Path(path).resolve()) + "/"
        for path in (*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages())
        if Path(path).name in ("site-packages", "dist-packages") or path in (
            sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")
        )
    }
)  # fmt: skip


class UserCodeError(UserError):
    """Code of the user's failed. The message names the part, what it was to do, the user's line and the exception."""

    raised = ""
    """The exception and the line alone."""
    details = ""
    """The whole traceback, which is lost where the error comes from another process."""


def is_ours(cls: type) -> bool:
    """Whether ``cls`` comes with this package."""
    module = cls.__module__
    return (module == "calibrated_rl" or module.startswith("calibrated_rl.")) and not is_user_file(module)


def call(
    owner: type,
    opening: Callable[[], str],
    function: Callable[..., T],
    /,
    *arguments: Any,
    drives: bool = False,
    passes: Callable[[BaseException], bool] = lambda error: False,
    **named: Any,
) -> T:
    """``function(*arguments, **named)``, which belongs to the part ``owner``.

    Args:
        opening: gives the message's opening, such as ``the task MyTask: outcome``.
        drives: whether it calls the running system in turn: what that raises is then no mistake of the part's.
        passes: tells what else is meant for others.

    Raises:
        UserCodeError: the user's code failed.
    """
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        if _is_for_others(error) or passes(error):
            raise
        failed = user_code_error(owner, opening(), error, _inside(error.__traceback__), function, drives=drives)
        if failed is None:
            raise
        raise failed from error


async def call_async(
    owner: type, opening: Callable[[], str], function: Callable[..., Awaitable[T]], /, *arguments: Any
) -> T:
    """As ``call``, for a function that is awaited.

    Raises:
        UserCodeError: the user's code failed.
    """
    try:
        return await function(*arguments)
    except (Exception, SystemExit) as error:
        if _is_for_others(error):
            raise
        failed = user_code_error(owner, opening(), error, _inside(error.__traceback__), function)
        if failed is None:
            raise
        raise failed from error


def _is_for_others(error: BaseException) -> bool:
    if isinstance(error, Exception) and is_disk_full(error):
        return True
    return any(is_ours(cls) for cls in type(error).__mro__) or type(error).__module__.partition(".")[0] == "ray"


def _inside(tracebacks: TracebackType | None) -> TracebackType | None:
    """Without the frame of ``call`` itself."""
    return tracebacks.tb_next if tracebacks is not None else None


def user_code_error(
    owner: type, opening: str, error: BaseException, tracebacks: TracebackType | None, function: Any = None, *,
    drives: bool = False,
) -> UserCodeError | None:  # fmt: skip
    """``error`` as a ``UserCodeError``; None where no line of the user's caused it, so that the caller re-raises it."""
    root = _root(owner)
    frames = [(f.tb_frame.f_code.co_filename, f.tb_lineno or 0) for f in _links(tracebacks)]
    kinds = [_kind(file, root) for file, _ in frames]
    users = [number for number, kind in enumerate(kinds) if kind == "user"]
    file, line = "", 0
    if users:
        file, line = frames[users[-1]]
        if "ours" in kinds[users[-1] :]:
            line_text = shown_line(file, line)
            if drives:
                error.add_note(f"raised in calibrated_rl, called from {line_text}")
                return None
    elif isinstance(error, SyntaxError) and error.filename and _kind(error.filename, root) == "user":
        pass  # its place is its own
    elif frames or is_ours(owner):
        return None
    else:  # it could not even be called
        file, line = place_of(function if function is not None else owner)
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
    raised = f"{exception_text(error)} ({shown_line(file, line)})"
    failed = UserCodeError(f"{opening} failed: {raised}")
    failed.raised = raised
    failed.details = "".join(traceback.format_exception(error))
    return failed


def _links(link: TracebackType | None) -> list[TracebackType]:
    links = []
    while link is not None:
        links.append(link)
        link = link.tb_next
    return links


def _root(owner: type) -> str:
    """Folder of the installed package, or file of the module, that ``owner`` comes from; empty: it is ours."""
    if is_ours(owner):
        return ""
    name = owner.__module__ if is_user_file(owner.__module__) else owner.__module__.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file:
        return ""
    return str(Path(file).parent) + "/" if Path(file).name == "__init__.py" else str(file)


def _kind(file: str, root: str) -> str:
    if file.startswith("<"):
        return "library"
    path = str(Path(file).resolve())
    if path.startswith(f"{PACKAGE}/"):
        return "ours"
    if root and (path == root or (root.endswith("/") and path.startswith(root))):
        return "user"
    return "library" if path.startswith(_LIBRARIES) or "/site-packages/" in path else "user"


def exception_text(error: BaseException) -> str:
    """Class and first line of what was raised; of a group, those of its first member."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else first_line(error) if str(error) else "")
    except Exception:  # an exception of the user's that cannot even be shown
        text = ""
    return f"{type(error).__name__}: {printable(text)}" if text else type(error).__name__


def shown_path(file: str) -> str:
    """Relative to the working directory where possible."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def shown_line(file: str, line: int) -> str:
    """``file:line: source``."""
    if not file:
        return "no line of a file"
    source = linecache.getline(file, line).strip()
    return f"{shown_path(file)}:{line}" + (f": {printable(source, 120)}" if source else "")


def place_of(definition: Any) -> tuple[str, int]:
    """File and line at which a class, a method or an object's class is defined; ``("", 0)`` where that is unknown."""
    for candidate in (definition, type(definition)):
        try:
            candidate = inspect.unwrap(candidate)
            return inspect.getsourcefile(candidate) or "", inspect.getsourcelines(candidate)[1]
        except (TypeError, OSError, ValueError):
            continue
    return "", 0


def described(owner: type, kind: str, method: str = "") -> str:
    """``the task MyTask (mine.py:12)``, or with a method ``the task MyTask: outcome (mine.py:20)``."""
    file, line = place_of(getattr(owner, method, owner) if method else owner)
    place = f" ({shown_path(file)}:{line})" if file else ""
    return f"the {kind} {owner.__name__}{f': {method}' if method else ''}{place}"


def lines_of_users(error: BaseException) -> list[str]:
    """``file:line: source`` of each frame of the user's that ``error`` came through, the one that raised it last."""
    frames = [(link.tb_frame.f_code.co_filename, link.tb_lineno or 0) for link in _links(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    return [shown_line(file, line) for file, line in frames if _kind(file, "") == "user"]
