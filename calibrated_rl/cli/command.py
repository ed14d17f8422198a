"""What all command lines share: arguments, and user errors as one line with exit code 2."""

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
OF_FILES = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM, errno.EROFS,
)  # fmt: skip
"""What an operating system refuses because of a file's name, place or rights, which are the user's to mend."""


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit with its code; a mistake of the user's ends with one line and code 2, a part that died
    with one line and code 1. A mistake of this program's is not caught. What it tells is the last that is printed."""
    third_party.hush()
    try:
        code = main()
    except (UserError, PartLost) as error:
        sys.exit(told(error))
    except OSError as error:
        if error.errno not in OF_FILES or error.filename is None:
            raise
        refused = UserError(f"{printable(str(error.filename))}: {error.strerror}")
        refused.__cause__ = error
        sys.exit(told(refused))
    sys.exit(code or 0)


def told(error: UserError | PartLost) -> int:
    """Print what went wrong; the exit code of the job."""
    # What a process of Ray raised comes wrapped, with that process's traceback for a message.
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, UserError | PartLost) else error
    details = getattr(shown, "details", "") or "".join(traceback.format_exception(error))
    console.failure(str(shown), details if TRACEBACK in sys.argv[1:] else "")
    return 2 if isinstance(error, UserError) else 1


class Parser(argparse.ArgumentParser):
    """What jobs read their command line with: its description is the job's own text, and a mistake is one line, too."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | named)
        told = "show where a mistake came up, below the line that tells it"
        self.add_argument(TRACEBACK, action="store_true", default=argparse.SUPPRESS, help=told)
        console.add_options(self)

    def parse_args(self, *given: Any, **named: Any) -> Any:
        return self._heeded(super().parse_args(*given, **named))

    def parse_intermixed_args(self, *given: Any, **named: Any) -> Any:
        return self._heeded(super().parse_intermixed_args(*given, **named))

    @staticmethod
    def _heeded(options: Any) -> Any:
        """``options``; what the command prints from now on is as they say."""
        console.configure_from(options)
        return options

    def error(self, message: str) -> NoReturn:
        # argparse counts what may be left out among what is missing.
        raise UserError(f"{message.replace(', key=value', '')} (--help says what there is)")


def allowed(hint: Any) -> Callable[[str], Any]:
    """``type`` of an argument that must be what the annotation ``hint`` allows, as a setting must; ``settings.py``."""

    def read(text: str) -> Any:
        try:
            return converted(hint, text, ())
        except NotAllowed as refused:
            raise argparse.ArgumentTypeError(f"it {refused.problems[0].text}") from refused

    return read


def result_file(*endings: str) -> Callable[[str], Path]:
    """``type`` of an argument that names a file to be written, so that a wrong one is told before the work, not after.

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
    """``path``, if ``folder``, or the nearest above it that is there, can be written to."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=nearest):
            return path
    except OSError as error:  # names that are too long among them
        raise argparse.ArgumentTypeError(f"'{path}' cannot be written ({error.strerror})") from error


CHILD = "CALIBRATED_RL_SUPERVISED"
"""Set for a job that another process watches over."""


def supervise(times: int) -> int | None:
    """Run this very command in a process of its own, and again, at most ``times`` more, when that is killed.

    Returns:
        The exit code of the job; None in the job itself, or where nobody is to watch (``times`` is 0).
    """
    if not times or CHILD in os.environ:
        return None
    for left in reversed(range(times + 1)):
        with subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, CHILD: "1"}) as job:
            signal.signal(signal.SIGTERM, lambda number, _, job=job: job.send_signal(number))  # type: ignore[misc]
            code = job.wait()
        if code >= 0 or code in (-signal.SIGTERM, -signal.SIGINT) or not left:
            return code if code >= 0 else 128 - code
        logger.warning(f"the job was killed by {signal.Signals(-code).name}; it goes on ({left} restarts left)")
    return None
