"""Shared parts of all command lines: arguments, and user errors as one line with exit code 2."""

import argparse
import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from calibrated_rl.errors import PartLost, UserError, printable
from calibrated_rl.runtime import console, third_party
from calibrated_rl.settings.fields import NotAllowed, converted, listed

logger = logging.getLogger(__name__)

TRACEBACK = "--traceback"
FILE_ERRORS = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS,
)  # fmt: skip
"""Errors of the operating system about a file's name, location or permissions, which the user can correct."""


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit with its code; a mistake of the user's ends with one line and code 2, a part that died
    with one line and code 1. A bug of this program is not caught. The error is the last line that is printed."""
    third_party.hush()
    try:
        code = main()
    except (UserError, PartLost) as error:
        sys.exit(report_error(error))
    except OSError as error:
        if error.errno not in FILE_ERRORS or error.filename is None:
            raise
        refused = UserError(f"{printable(str(error.filename))}: {error.strerror}")
        refused.__cause__ = error
        sys.exit(report_error(refused))
    sys.exit(code or 0)


def report_error(error: UserError | PartLost) -> int:
    """Print the error; returns the exit code of the job."""
    # Ray wraps an error of one of its processes, with that process's traceback as the message.
    cause = getattr(error, "cause", None)
    reported = cause if isinstance(cause, UserError | PartLost) else error
    details = getattr(reported, "details", "") or "".join(traceback.format_exception(error))
    console.failure(str(reported), details if TRACEBACK in sys.argv[1:] else "")
    return 2 if isinstance(error, UserError) else 1


class Parser(argparse.ArgumentParser):
    """The parser of all jobs: its description is the job's docstring, and a mistake is reported as one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        description = "print the traceback of an error below its message"
        self.add_argument(TRACEBACK, action="store_true", default=argparse.SUPPRESS, help=description)
        console.add_options(self)

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        return self._configure_console(super().parse_args(*arguments, **options))

    def parse_intermixed_args(self, *arguments: Any, **options: Any) -> Any:
        return self._configure_console(super().parse_intermixed_args(*arguments, **options))

    @staticmethod
    def _configure_console(options: Any) -> Any:
        """Apply ``options`` to the console output, and return them."""
        console.configure_from(options)
        return options

    def error(self, message: str) -> NoReturn:
        # argparse lists optional arguments among the missing ones.
        raise UserError(f"{message.replace(', key=value', '')} (see --help)")


def allowed(hint: Any) -> Callable[[str], Any]:
    """``type`` of an argument that must be what the annotation ``hint`` allows, as a setting must; ``settings.py``."""

    def read(text: str) -> Any:
        try:
            return converted(hint, text, ())
        except NotAllowed as refused:
            raise argparse.ArgumentTypeError(f"it {refused.problems[0].text}") from refused

    return read


def result_file(*endings: str) -> Callable[[str], Path]:
    """``type`` of an argument that names a file to be written, so that a wrong one is reported before the work, not
    after.

    Args:
        endings: one of which its name must have, such as ``.png``; none: any name.
    """

    def read(text: str) -> Path:
        path = Path(text)
        if not text.strip() or os.path.isdir(path):  # False for names that are too long
            raise argparse.ArgumentTypeError(f"'{text}' is {'a folder' if text.strip() else 'no name'}: name a file")
        if endings and path.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"'{text}': its name must end in {listed(endings)}")
        return _writable(path, path.parent)

    return read


def picture(text: str) -> Path:
    """``type`` of an argument that names a picture to be drawn."""
    return result_file(".png", ".svg", ".pdf")(text)


def result_folder(text: str) -> Path:
    """``type`` of an argument that names a folder to be made or written to."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is no name: name a folder")
    return _writable(Path(text), Path(text))


def _writable(path: Path, folder: Path) -> Path:
    """``path``, if ``folder``, or the nearest existing one above it, can be written to."""
    try:
        nearest = next(candidate for candidate in (folder, *folder.absolute().parents) if candidate.exists())
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:  # names that are too long among them
        raise argparse.ArgumentTypeError(f"'{path}' cannot be written ({error.strerror})") from error


CHILD = "CALIBRATED_RL_SUPERVISED"
"""Set for a job that another process supervises."""


def supervise(times: int) -> int | None:
    """Run this command in a process of its own, and restart it, at most ``times`` times, when it is killed.

    Returns:
        The exit code of the job; None in the job itself, or without supervision (``times`` is 0).
    """
    if not times or CHILD in os.environ:
        return None
    for restarts_left in reversed(range(times + 1)):
        with subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, CHILD: "1"}) as job:
            signal.signal(signal.SIGTERM, lambda number, _, job=job: job.send_signal(number))  # type: ignore[misc]
            code = job.wait()
        if code >= 0 or code in (-signal.SIGTERM, -signal.SIGINT) or not restarts_left:
            return code if code >= 0 else 128 - code
        logger.warning(
            f"the job was killed by {signal.Signals(-code).name}; restarting it ({restarts_left} restarts left)"
        )
    return None
