"""Suppresses what third-party libraries print, unless the user has requested it.

``--verbose`` lets everything through. Processes that this one starts learn of it by the environment.
"""

import atexit
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERBOSE = "CALIBRATED_RL_VERBOSE"
"""Environment variable: set where the user has requested the output of libraries."""

CHATTY = ("ray.rllib",)
"""Loggers that only warn of their own defaults, which a user cannot change."""


def let_through() -> None:
    """For ``--verbose``: suppress nothing from here on, in this process and in those that it starts."""
    os.environ[VERBOSE] = "1"
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def is_let_through() -> bool:
    return VERBOSE in os.environ


def hush() -> None:
    """Suppress output; to be called before any library is imported, first in the process of a command."""
    atexit.register(_close_stderr)  # before all others, so that it is called after them
    select_deepspeed_device()
    if not is_let_through():
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)


def select_deepspeed_device() -> None:
    """Set DeepSpeed's device where there is no GPU, since it otherwise warns in every process. To be called before any
    process is started."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _close_stderr() -> None:
    """Suppress lists of leaks that C++ libraries print while the process exits, after Python's own clean-up: forty
    lines below the relevant message (nanobind, in triton)."""
    if not is_let_through():
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def hide_bars() -> None:
    """Disable the bars of transformers, since only one bar is shown at a time. Imports transformers."""
    if not is_let_through():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def hush_deepspeed() -> None:
    """Suppress DeepSpeed's output in a rank of the learner, after it is imported."""
    if is_let_through():
        return
    # DeepSpeed calls collectives by deprecated names, and torch warns at each call site.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


@contextmanager
def garbage_kept() -> Iterator[None]:
    """While a large library is imported: the garbage collector would traverse all that is loaded again and again, which
    takes a seventh of the time, and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def engine_environment() -> dict[str, str]:
    """Variables for the process of an engine; vLLM reads them at import."""
    return {"VLLM_LOGGING_LEVEL": "INFO" if is_let_through() else "ERROR"}


def ray_options(*, local: bool) -> dict[str, Any]:
    """Options for ``ray.init``. The output of a local Ray's processes stays in their files; that of a cluster's is
    forwarded here, since nobody would look for it on its machines."""
    options: dict[str, Any] = {"logging_level": logging.INFO if is_let_through() else logging.ERROR}
    return options | ({"log_to_driver": is_let_through()} if local else {})


def worker_environment() -> dict[str, str]:
    """Variables for all processes of a job's Ray."""
    return {VERBOSE: os.environ[VERBOSE]} if is_let_through() else {}
