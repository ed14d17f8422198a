"""Align the simulator of a config by several methods, without training a policy, and measure each exactly.

    python jobs/align.py configs/dev.yaml [key=value ...]
    python jobs/align.py configs/dev.yaml --method calibrated_rl.calibration.plain:PlainSFT \\
        --method "calibrated_rl.calibration.turing:Turing rounds=2 discriminator.width=64" --split tuning

For configs whose human is a program. Each --method is an import path with settings of its own; none: fine-tuning,
adversarial and turing, with their defaults. Every method starts from the same uncalibrated simulator, with the first of
the config's seeds. Measured on the logs of --split, on their histories: the exact total variation a user turn, and the
sum over a dialogue's turns, weighted as in the bound (docs/shift.md), with 95 % intervals over dialogues and the paired
difference from the first method. Results are in RUNS/NAME/alignment.json; what is there is not measured again.
"""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.cli.compare import parser_of
from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console
from tools.align.table import table

logger = logging.getLogger(__name__)

METHODS = ("plain:PlainSFT", "adversarial:Adversarial", "turing:Turing")


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument(
        "--method", action="append", default=[], metavar="PATH", help="import path of a method, and settings of it"
    )
    parser.add_argument(
        "--split", choices=(Split.HELD_OUT.value, Split.TUNING.value), default=Split.HELD_OUT.value,
        help="held_out for what is reported, tuning to choose settings (default: held_out)",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    if (code := command.supervise(arguments.supervise)) is not None:
        return code
    from calibrated_rl.api.settings import settings_to_run
    from calibrated_rl.config.endpoint_checks import refuse_endpoint_simulator

    config = settings_to_run(arguments.config, arguments.overrides, arguments.hardware, side_experiments=False).config
    refuse_endpoint_simulator(config, "to be aligned")
    if not config.human:
        raise UserError(
            "human is empty: only where it is a program is the distance of a simulator from it known exactly"
        )
    from calibrated_rl.run.saved_run import dated, refuse_other_settings
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import exclusive, read_json, write_json
    from tools.align.measure import Alignments, method_of

    folder, progress = Path(arguments.runs) / config.name, Progress()
    config = dated(config, folder)
    refuse_other_settings(folder, config)
    file, names = folder / "alignment.json", wanted(arguments.method, arguments.split)
    results = read_json(file) if file.is_file() else {}
    for name in names:
        method_of(name)  # mistakes come to light before anything large is loaded
    if missing := [name for name in names if name not in results]:
        with exclusive(folder), Alignments.started(config, folder, progress, Split(arguments.split)) as alignments:
            for name in missing:
                logger.info(f"aligning: {name}")
                results[name] = alignments.measured(name)
                write_json(file, results)
    console.result(table({name: results[name] for name in names}))
    return 0


def wanted(methods: Sequence[str], split: str) -> list[str]:
    """Names of the results: what is measured, the split at the end."""
    chosen = methods or [f"calibrated_rl.calibration.{name}" for name in METHODS]
    return [f"{' '.join(shlex.split(method))} ({split})" for method in ("none", *chosen)]
