"""Runs the arms of a config in a run folder: starts the cluster for arms without a result, and restarts it when a part
of it is lost."""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import PartLost, is_disk_full
from calibrated_rl.run.inputs import RunInputs, read_inputs
from calibrated_rl.run.saved_run import dated, refuse_other_settings
from calibrated_rl.run.writer import copy_of_run
from calibrated_rl.runtime.background import BackgroundWriter
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.storage.files import exclusive, read_json, wait_for_space
from calibrated_rl.study.compare import compare, is_done, missing_results, write_summary
from calibrated_rl.training.training_run import started

logger = logging.getLogger(__name__)


def run_arms(config: RunConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Start a cluster and run the arms of ``config`` that have no result; returns the summary. Where the folder is
    empty and ``training.checkpoint_store`` has the run, it resumes from there. Prompts have the date on which the run
    began.

    Raises:
        UserError: the settings differ from those that the run in ``folder`` began with, another process writes to it,
            or something that it needs is missing.
        PartLost: a part died more often than ``restarts`` allows.
    """
    logger.info(f"run folder {folder}")
    copy = copy_of_run(config, folder)
    if copy is not None:
        with exclusive(folder):
            copy.fetch()
    config = dated(config, folder)
    refuse_other_settings(folder, config)
    if is_done(config, folder):
        logger.info("every arm is there already; the summary and the report are kept")
        summary: dict[str, Any] = read_json(folder / "summary.json")
    else:
        summary = _run_missing(config, folder, progress)
    if copy is not None:
        writer = BackgroundWriter()
        writer.write(("the copy of the finished run in the store", copy.send))
        writer.close()
    return summary


def _run_missing(config: RunConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    with exclusive(folder):
        restarts = 0
        inputs: RunInputs | None = None
        while missing_results(config, folder) or not (folder / "simulator.json").is_file():
            try:
                with started(config, folder, progress) as training:
                    inputs = training.inputs
                    compare(training)
            except (OSError, SafetensorError) as error:
                if not is_disk_full(error):
                    raise
                wait_for_space(folder)
                logger.info("starting again from the last checkpoint")
            except PartLost as lost:
                restarts += 1
                if restarts > config.restarts:
                    raise
                logger.warning(f"{lost}; starting again from the last checkpoint ({restarts} of {config.restarts})")
        return write_summary(inputs or read_inputs(config, folder, progress, training=False, compares_logs=True))
