"""Train the arms of a config side by side and compare them on held-out people.

    python jobs/compare.py configs/dev.yaml [key=value ...]

Writes runs/NAME/ and goes on where it stopped. Prints the table of the arms and the path of the report.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotNegative

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.runtime.progress import Progress

logger = logging.getLogger(__name__)


def parser_of(description: str) -> argparse.ArgumentParser:
    """What all jobs that run a config understand."""
    parser = command.Parser(description=description)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace settings, e.g. seeds=[0,1]")
    parser.add_argument(
        "--hardware", type=command.allowed(Literal["auto", "cpu", "one_gpu", "cluster"]), default="auto",
        metavar="{auto,cpu,one_gpu,cluster}",
        help="which settings for hardware to lay over the config (default: found on this machine or cluster)",
    )  # fmt: skip
    parser.add_argument(
        "--supervise", type=command.allowed(NotNegative), default=0, metavar="N",
        help="watch over the job and start it again, from its last checkpoint, up to N times if it is killed",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=command.result_folder, default=Path("runs"), help="folder of all runs (default: runs)"
    )
    return parser


MAIN = "main"
"""What ``--only`` calls the run itself, beside its variants."""


def execute(
    config_file: str, overrides: list[str], runs: str, hardware: str, *, side_experiments: bool = True, only: str = ""
) -> None:
    """Run the arms of the config, then its variants; print the table. ``only``: just that part of it."""
    from calibrated_rl.config.run_config import load_config, variants_of
    from calibrated_rl.errors import UserError

    asked = load_config(config_file, overrides)  # mistakes come to light before anybody looks for devices
    from calibrated_rl.report.text import table
    from calibrated_rl.run.saved_run import dated
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.study.compare import add_variants  # and before anything large is loaded
    from calibrated_rl.study.inheritance import take_over

    overrides = [*command.hardware(hardware), *overrides]
    config = load_config(config_file, overrides)
    variants = variants_of(config, config_file, overrides) if side_experiments else {}
    if only and only not in (MAIN, *variants):
        raise UserError(f"{config_file} has no part '{only}'; there are: {', '.join((MAIN, *variants))}")
    progress, folder = Progress(), Path(runs) / config.name
    if asked.deterministic and not config.deterministic:
        logger.warning(f"deterministic is turned off by {overrides[0]}: the same seed will not give the same run")
    if only in ("", MAIN):
        summary = run(config, folder, progress)
    for name, variant in variants.items():
        if only in ("", name):
            logger.info(f"variant {name}: {' '.join(config.variants[name].change)}")
            variant = dated(variant, Path(runs) / variant.name, folder, today=False)
            for taken in take_over(folder, dated(config, folder, today=False), Path(runs) / variant.name, variant):
                logger.info(f"taken over from {folder}, since no setting bears on it: {taken}")
            summary = run(variant, Path(runs) / variant.name, progress)
    folders = {name: Path(runs) / variant.name for name, variant in variants.items()}
    done = {name: each for name, each in folders.items() if (each / "summary.json").is_file()}
    if done and (folder / "summary.json").is_file():
        of_all = add_variants(config, folder, done)
        summary = summary if only else of_all
    console.result(table(summary))
    where = folder if only in ("", MAIN) else folders[only]
    console.result(f"report: {(where / 'report.html').resolve()}")


def run(config: "RunConfig", folder: Path, progress: "Progress") -> dict[str, Any]:
    """Run what is missing of the arms of ``config``, with everything started for it; the summary. Where the folder is
    empty and ``training.checkpoint_store`` has the run, it goes on from there. Prompts are of the day on which the run
    was begun."""
    from calibrated_rl.run.saved_run import dated, refuse_other_settings
    from calibrated_rl.run.writer import copy_of_run
    from calibrated_rl.runtime.background import BackgroundWriter
    from calibrated_rl.storage.files import exclusive, read_json
    from calibrated_rl.study.compare import is_done

    logger.info(f"run folder {folder}")
    copy = copy_of_run(config, folder)
    if copy is not None:
        with exclusive(folder):
            copy.bring_down()
    config = dated(config, folder)
    refuse_other_settings(folder, config)
    if is_done(config, folder):
        logger.info("every arm is there already; the summary and the report are kept")
        summary = read_json(folder / "summary.json")
    else:
        summary = _run_missing(config, folder, progress)
    if copy is not None:
        writer = BackgroundWriter()
        writer.write(("the copy of the finished run in the store", copy.send))
        writer.close()
    return summary  # type: ignore[no-any-return]


def _run_missing(config: "RunConfig", folder: Path, progress: "Progress") -> dict[str, Any]:
    from safetensors import SafetensorError

    from calibrated_rl.errors import PartLost, is_no_room
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.storage.files import exclusive, wait_for_room
    from calibrated_rl.study.compare import compare, missing, write_summary

    with exclusive(folder):
        restarts, inputs = 0, None
        while missing(config, folder) or not (folder / "simulator.json").is_file():
            try:
                with command.started(config, folder, progress) as training:
                    inputs = training.inputs
                    compare(training)
            except (OSError, SafetensorError) as error:
                if not is_no_room(error):
                    raise
                wait_for_room(folder)
                logger.info("starting again from the last checkpoint")
            except PartLost as lost:
                restarts += 1
                if restarts > config.restarts:
                    raise
                logger.warning(f"{lost}; starting again from the last checkpoint ({restarts} of {config.restarts})")
        return write_summary(inputs or read_inputs(config, folder, progress, training=False))


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", default="", metavar="PART",
        help="main, or one variant of the config: parts of a study may run beside each other, or on other days",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    if (code := command.supervise(arguments.supervise)) is not None:
        return code
    execute(arguments.config, arguments.overrides, arguments.runs, arguments.hardware, only=arguments.only)
    return 0
