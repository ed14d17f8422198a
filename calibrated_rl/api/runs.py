"""Training and comparing arms."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from calibrated_rl.api.results import SUMMARY, RunResult
from calibrated_rl.api.settings import allowed, settings_to_run
from calibrated_rl.config.load import ConfigLike
from calibrated_rl.config.sections import ArmName
from calibrated_rl.errors import UserError
from calibrated_rl.run.machine import Hardware

logger = logging.getLogger(__name__)

MAIN = "main"
"""The value of ``only`` for the run itself, without its variants."""


def compare(
    config: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    runs: str | os.PathLike[str] = "runs",
    hardware: Hardware | None = None,
    only: str = "",
    side_experiments: bool = True,
) -> RunResult:
    """Train the arms of a config side by side and compare them on held-out users, then run its variants.

    Finished parts in the run folder are not repeated: an interrupted run resumes from its last checkpoint. Ray is
    started unless it runs in this process already, and stays up for the next call.

    Args:
        config: a YAML file, or a config (``load_config``).
        overrides: as of ``load_config``.
        runs: folder of all runs; that of this one is ``runs/NAME``.
        hardware: which settings for hardware to merge over the config; None: those that fit this machine for a file,
            and none for a ``RunConfig``.
        only: one part of it, ``main`` or a variant's name; empty: all.
        side_experiments: whether the config's variants are run.

    Returns:
        The results; of a single variant with ``only``, that variant's.

    Raises:
        UserError: settings, data, models or the machine do not allow it; says what to do.
        PartLost: a process that the run cannot continue without died, more often than ``restarts`` allows.
    """
    resolved = settings_to_run(config, overrides, hardware, side_experiments=side_experiments)
    if only and only not in (MAIN, *resolved.variants):
        config_name = resolved.config.name if not isinstance(config, str | os.PathLike) else os.fspath(config)
        raise UserError(f"{config_name} has no part '{only}'; there are: {', '.join((MAIN, *resolved.variants))}")
    from calibrated_rl.run.saved_run import dated  # mistakes came to light before anything large is loaded
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.study.compare import add_variants
    from calibrated_rl.study.inheritance import take_over
    from calibrated_rl.study.run_arms import run_arms

    progress, folder = Progress(), Path(runs) / resolved.config.name
    folders = {name: Path(runs) / variant.name for name, variant in resolved.variants.items()}
    if resolved.note:
        logger.warning(resolved.note)
    if only in ("", MAIN):
        summary = run_arms(resolved.config, folder, progress)
    for name, variant in resolved.variants.items():
        if only in ("", name):
            logger.info(f"variant {name}: {' '.join(resolved.config.variants[name].change)}")
            variant = dated(variant, folders[name], folder, today=False)
            for item in take_over(folder, dated(resolved.config, folder, today=False), folders[name], variant):
                logger.info(f"reusing from {folder}, since no changed setting affects it: {item}")
            summary = run_arms(variant, folders[name], progress)
    finished_folders = {
        name: variant_folder for name, variant_folder in folders.items() if (variant_folder / SUMMARY).is_file()
    }
    if finished_folders and (folder / SUMMARY).is_file():
        summary_of_all = add_variants(resolved.config, folder, finished_folders)
        summary = summary if only else summary_of_all
    if only in ("", MAIN):
        return RunResult(folder=folder, config=resolved.config, summary=summary)
    return RunResult(folder=folders[only], config=resolved.variants[only], summary=summary)


def train(
    config: ConfigLike,
    arm: str = "calibrated",
    overrides: Sequence[str] = (),
    *,
    runs: str | os.PathLike[str] = "runs",
    hardware: Hardware | None = None,
) -> RunResult:
    """Train one arm of a config, with all its seeds, and evaluate it on held-out users.

    Args:
        arm: one of the package's, or the import path of another one.

    The other arguments, the result and the errors are those of ``compare``.
    """
    arm = allowed("arm", ArmName, arm)
    arm_overrides = [*overrides, f"arms=[{arm}]", "control_arms=[]"] if not isinstance(overrides, str) else overrides
    return compare(config, arm_overrides, runs=runs, hardware=hardware, side_experiments=False)
