"""What all jobs share: user errors as one line with exit code 2, Ray, the run folder."""

import argparse
import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from calibrated_rl import config
from calibrated_rl.errors import PartLost, UserError, printable
from calibrated_rl.runtime import console, third_party
from calibrated_rl.settings.fields import NotAllowed, converted, listed

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.training.training_run import TrainingRun

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


HARDWARE = Path(config.__file__).parent / "hardware"

CLUSTER_GPUS = 7
"""What ``config/hardware/cluster.yaml`` asks for: two replicas a side, two learner ranks, a proxy."""


def hardware(name: str) -> list[str]:
    """The file of ``calibrated_rl/config/hardware`` to lay over a config, as a list of one; ``auto`` looks what is
    there, and takes ``cluster`` only where each of its parts finds a GPU."""
    if name == "auto":
        count = _gpus()
        name = "cpu" if not count else "cluster" if count >= CLUSTER_GPUS else "one_gpu"
        logger.debug(f"{count} GPUs were found: settings of {name}.yaml")
    return [str(HARDWARE / f"{name}.yaml")]


def _gpus() -> int:
    if "RAY_ADDRESS" in os.environ:
        import ray

        start_ray()
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def start_ray() -> None:
    """Join the cluster that this job was submitted to, or start a local Ray."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | third_party.worker_environment()
    local = "RAY_ADDRESS" not in os.environ
    options = third_party.ray_options(local=local) | {"runtime_env": {"env_vars": environment}}
    if local:
        # local: never the cluster that somebody has started on this machine for something else
        options |= {"address": "local", "object_store_memory": 1536 * 2**20, "include_dashboard": False}
    logger.debug(f"starting a local Ray with {options}" if local else f"joining the Ray at {os.environ['RAY_ADDRESS']}")
    ray.init(**options)


@contextmanager
def started(config: "RunConfig", folder: Path, progress: "Progress") -> "Iterator[TrainingRun]":
    """The whole system of a run, started; its settings lie in ``folder``. Stops it in the end."""
    from calibrated_rl.config.run_config import to_yaml
    from calibrated_rl.run.base_models import prepare_models
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.training.training_run import training_run

    folder.mkdir(parents=True, exist_ok=True)
    inputs = read_inputs(config, folder, progress)
    models = prepare_models(inputs)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    start_ray()
    try:
        with training_run(inputs, models) as run:
            yield run
    finally:
        progress.close()
