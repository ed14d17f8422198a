"""Writes files of a run while training continues, and updates the copy of the run in an object store."""

from collections.abc import Callable
from pathlib import Path

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.runtime.background import BackgroundWriter
from calibrated_rl.storage.run_copy import RunCopy


def copy_of_run(config: RunConfig, folder: Path) -> RunCopy | None:
    """Access to the copy of the run in ``training.checkpoint_store``; None where that names no store."""
    training = config.training
    if not training.checkpoint_store:
        return None
    return RunCopy(training.checkpoint_store, config.name, folder, max(2, training.checkpoints_kept))


class RunWriter:
    """Writes in the background; then new files in the run folder are sent to the copy, if there is one."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._background = BackgroundWriter()
        self._copy: RunCopy | None = None

    def write(self, *jobs: tuple[str, Callable[[], None]]) -> None:
        """Start ``jobs``, each with its name in the log, once those of the last call are done."""
        if self._copy is None:
            self._copy = copy_of_run(self._config, self._folder)
        copy = [] if self._copy is None else [("the copy of the run in the store", self._copy.send)]
        self._background.write(*jobs, *copy)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        self._background.wait()

    def close(self) -> None:
        """Wait, and end the thread."""
        self._background.close()
