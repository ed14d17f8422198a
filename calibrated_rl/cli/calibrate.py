"""Align a simulator with human logs, without training a policy, and measure it before and after.

    python jobs/calibrate.py configs/dev.yaml [key=value ...]

Makes the models that the config names (with the policy's warm start, since a simulator is also evaluated by its
behaviour in dialogues with it), measures on held-out logs, and writes runs/NAME/simulator.json and the calibrated
simulator in Hugging Face format to runs/NAME/models/calibrated. Existing results are kept: jobs/compare.py with the
same config continues from them.
"""

import logging
from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.cli.compare import parser_of
from calibrated_rl.config.endpoint_checks import refuse_endpoint_simulator
from calibrated_rl.runtime import console

logger = logging.getLogger(__name__)


def main() -> int:
    assert __doc__ is not None
    arguments = parser_of(__doc__).parse_intermixed_args()
    if (code := command.supervise(arguments.supervise)) is not None:
        return code

    from calibrated_rl.api.settings import settings_to_run

    config = settings_to_run(arguments.config, arguments.overrides, arguments.hardware, side_experiments=False).config
    refuse_endpoint_simulator(config, "to be calibrated")
    from calibrated_rl.report.text import simulator_table
    from calibrated_rl.report.values import number
    from calibrated_rl.run.saved_run import dated, refuse_other_settings
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import exclusive, read_json, write_json

    folder, progress = Path(arguments.runs) / config.name, Progress()
    logger.info(f"run folder {folder}")
    config = dated(config, folder)
    refuse_other_settings(folder, config)
    file = folder / "simulator.json"
    if file.is_file():
        logger.info("keeping the simulator that was calibrated and measured before")
    else:
        from calibrated_rl.study.compare import measure_simulators
        from calibrated_rl.training.training_run import started

        with exclusive(folder), started(config, folder, progress) as run:
            logger.info("measuring the simulator before and after calibration")
            write_json(file, measure_simulators(run))
    simulator = read_json(file)
    console.result(simulator_table(simulator))
    console.result("Accuracy 0.5: a simulator's reply and a human's to the same history cannot be told apart.")
    if band := simulator.get("null_band"):
        console.result(f"Two halves of the human replies give {number(band['low'])} to {number(band['high'])}.")
    console.result(f"calibrated simulator: {(folder / 'models' / 'calibrated').resolve()}")
    return 0
