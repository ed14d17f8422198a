"""Train the arms of a config side by side and compare them on held-out users.

    python jobs/compare.py configs/dev.yaml [key=value ...]

Writes runs/NAME/ and resumes where it stopped. Prints the table of the arms and the path of the report.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from calibrated_rl.cli import command
from calibrated_rl.run.machine import Hardware
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotNegative

if TYPE_CHECKING:
    from calibrated_rl.api.results import RunResult


def parser_of(description: str) -> argparse.ArgumentParser:
    """The parser of all jobs that run a config."""
    parser = command.Parser(description=description)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace settings, e.g. seeds=[0,1]")
    parser.add_argument(
        "--hardware", type=command.allowed(Hardware), default="auto",
        metavar="{auto,cpu,one_gpu,cluster}",
        help="which settings for hardware to merge over the config (default: found on this machine or cluster)",
    )  # fmt: skip
    parser.add_argument(
        "--supervise", type=command.allowed(NotNegative), default=0, metavar="N",
        help="supervise the job and restart it, from its last checkpoint, up to N times if it is killed",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=command.result_folder, default=Path("runs"), help="folder of all runs (default: runs)"
    )
    return parser


def show(result: "RunResult") -> None:
    """Print the table of the arms and the path of the report."""
    console.result(result.table())
    console.result(f"report: {result.report}")


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", default="", metavar="PART",
        help="main, or one variant of the config: parts of a study may run in parallel, or on different days",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    if (code := command.supervise(arguments.supervise)) is not None:
        return code
    from calibrated_rl.api.runs import compare

    show(
        compare(
            arguments.config, arguments.overrides, runs=arguments.runs, hardware=arguments.hardware, only=arguments.only
        )
    )
    return 0
