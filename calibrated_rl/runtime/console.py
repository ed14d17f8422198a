"""The console output of a command: its log, and its result. Set up once, by the command line (``cli/command.py``).

Modules log with the standard library, each to the logger of its own name, at these levels:

- debug: details that explain decisions and measurements;
- info: the progress of a run;
- warning: something was lost, refused, retried or abandoned, or differs from the request, and the job continues;
- error: the job cannot continue.

Where the package is used as a library nothing is set up. Then the standard library prints warnings on the standard
error, and nothing else, until the program sets up logging of its own.
"""

import argparse
import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from tqdm import tqdm

from calibrated_rl.runtime import third_party

Format = Literal["text", "json"]

OURS = ("calibrated_rl", "research", "tools")
"""Root loggers of this project's own modules."""


class TextLines(logging.Formatter):
    """``[  12.3 s] text``, with the level before the text of warnings and errors, and the logger's name if not ours."""

    def __init__(self, began: float) -> None:
        """``began``: of the monotonic clock, from which on time counts."""
        super().__init__()
        self._began = began

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        prefix = "" if record.name.split(".", 1)[0] in OURS else f"{record.name}: "
        text = f"[{monotonic() - self._began:6.1f} s] {level}{prefix}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (ISO 8601, UTC), ``seconds`` since the start, ``level``, ``logger``, ``message``, and
    ``exception`` where there is one."""

    def __init__(self, began: float) -> None:
        """``began``: of the monotonic clock, from which on time counts."""
        super().__init__()
        self._began = began

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "seconds": round(monotonic() - self._began, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _write(text: str) -> None:
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left; the work continues
        with suppress(OSError):  # for the final flush at exit, too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleHandler(logging.Handler):
    """Writes to the standard output, above the bar of ``progress.py`` if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:
            self.handleError(record)


_handler: ConsoleHandler | None = None
RESULT = "result"
"""The level that ``result`` has as JSON."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of all commands; a subcommand may repeat them. ``configure_from`` reads them."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
        help="print details, too, and what the libraries below print of themselves",
    )  # fmt: skip
    amount.add_argument(
        "-q", "--quiet", action="store_true", default=argparse.SUPPRESS,
        help="print the result, and before it nothing but warnings and errors",
    )  # fmt: skip
    parser.add_argument(
        "--log-format", choices=("text", "json"), default=argparse.SUPPRESS,
        help="json: one object a line, the result included (default: text)",
    )  # fmt: skip


def configure_from(options: argparse.Namespace) -> None:
    """Set up the console output, as the command line requests."""
    verbose, quiet = getattr(options, "verbose", False), getattr(options, "quiet", False)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    configure(level, getattr(options, "log_format", "text"))


def configure(level: int = logging.INFO, log_format: Format = "text") -> None:
    """Print the log on the standard output from now on; time counts from here.

    Args:
        level: of our own loggers. Of others, such as a library's or that of a part of the user's, warnings are printed;
            with ``logging.DEBUG`` also information, and the output that ``third_party.py`` suppresses.
    """
    global _handler
    reset()
    _handler = ConsoleHandler()
    _handler.setFormatter({"text": TextLines, "json": JsonLines}[log_format](monotonic()))
    root = logging.getLogger()
    root.addHandler(_handler)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    if level <= logging.DEBUG:
        root.setLevel(logging.INFO)
        third_party.let_through()


def reset() -> None:
    """Undo ``configure``."""
    global _handler
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
        root.setLevel(logging.WARNING)
        _handler = None
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)


def result(text: str) -> None:
    """Print the result of a command on the standard output, at any log level."""
    line = _as_json(text, RESULT)
    _write(text if line is None else line)


def failure(text: str, details: str = "") -> None:
    """Print why a command ends, on the standard error.

    Args:
        details: a traceback, with its line breaks; below the text.
    """
    line = _as_json(text, "error", **({"exception": details} if details else {}))
    print(f"error: {text}\n{details}" if line is None else f"{line}\n", end="", file=sys.stderr, flush=True)


def _as_json(text: str, level: str, **fields: str) -> str | None:
    """The line of JSON; None where the format is text."""
    if _handler is None or not isinstance(_handler.formatter, JsonLines):
        return None
    record = logging.makeLogRecord({"name": "calibrated_rl", "levelname": level, "msg": text})
    return json.dumps(json.loads(_handler.formatter.format(record)) | fields)
