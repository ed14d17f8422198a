"""What the libraries below print of themselves: kept from a user who has not asked for it, all of it here.

``--verbose`` lets everything through. What processes must know that this one starts goes by the environment.
"""

import atexit
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

VERBOSE = "CALIBRATED_RL_VERBOSE"
"""Environment variable: set where a user has asked for what libraries print."""

CHATTY = ("ray.rllib",)
"""Loggers that warn of their own defaults, and of nothing that a user could change."""


def let_through() -> None:
    """``--verbose`` was given: from here on nothing is kept back, in this process and in those that it starts."""
    os.environ[VERBOSE] = "1"
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET)


def is_let_through() -> bool:
    return VERBOSE in os.environ


def hush() -> None:
    """Before any library is imported, first thing in the process of a command."""
    atexit.register(_hear_no_more)  # before all others, so that it is called after them
    tell_deepspeed()
    if not is_let_through():
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)


def tell_deepspeed() -> None:
    """Where there is no GPU, say so to DeepSpeed, which otherwise warns of it in every process. Before any process is
    started."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _hear_no_more() -> None:
    """Libraries written in C++ list what they have leaked while the process ends, after Python's own part of it: forty
    lines below the message that counts (nanobind, in triton)."""
    if not is_let_through():
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def hide_bars() -> None:
    """No bars of transformers' own: one at a time, and that is ours. Imports transformers."""
    if not is_let_through():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def hush_deepspeed() -> None:
    """In a rank of the learner, after DeepSpeed is imported."""
    if is_let_through():
        return
    # DeepSpeed calls collectives by their old names, and torch says so at each call site.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def engine_environment() -> dict[str, str]:
    """For the process of an engine; vLLM reads it at import."""
    return {"VLLM_LOGGING_LEVEL": "INFO" if is_let_through() else "ERROR"}


def ray_options(*, local: bool) -> dict[str, Any]:
    """For ``ray.init``. What processes of a local Ray print stays in their files; that of a cluster's comes here, since
    nobody would look for it on its machines."""
    options: dict[str, Any] = {"logging_level": logging.INFO if is_let_through() else logging.ERROR}
    return options | ({"log_to_driver": is_let_through()} if local else {})


def worker_environment() -> dict[str, str]:
    """For all processes of a job's Ray."""
    return {VERBOSE: os.environ[VERBOSE]} if is_let_through() else {}
