"""Compare asking humans about chosen histories (jobs/ask.py) with asking about random ones, where humans are programs.

    python jobs/ask_study.py runs/dev --out runs/dev_asking [--counts 100,200,400] [--seeds 0,1,2] [key=value ...]

Picks histories of RUN's current policy both ways, lets the scripted human reply, aligns a simulator with the logs and
these replies, and measures its exact shift on dialogues of that policy with held-out people. Prints a table, writes
OUT/asking.json, and resumes where it stopped. RUN must be finished, with a scripted human.
"""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.api.asking import CANDIDATES, DRAWS, UPDATES, arm_name
from calibrated_rl.cli import command
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotAllowed, Positive, Seed, converted

if TYPE_CHECKING:
    from tools.asking.study import Setup

logger = logging.getLogger(__name__)


def main() -> None:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the finished run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. calibration.sft.epochs=2")
    parser.add_argument("--out", type=command.result_folder, required=True, metavar="FOLDER", help="of the study")
    parser.add_argument(
        "--arm", default="", metavar="ARM-SEED", help="whose policy (default: the first calibrated one)"
    )
    parser.add_argument(
        "--counts", default="100,200,400", metavar="N,N", help="replies to ask for (default 100,200,400)"
    )
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N", help="of picking, replies and fits (default 0,1,2)")
    parser.add_argument(
        "--scenarios", type=command.allowed(Positive), default=200, metavar="N", help="held-out people (default 200)"
    )
    parser.add_argument(
        "--updates", type=command.allowed(Positive), default=UPDATES, metavar="N",
        help=f"look at dialogues of at most so many of the last updates (default {UPDATES})",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    counts = sorted(set(_numbers("--counts", arguments.counts, Positive)))
    seeds = _numbers("--seeds", arguments.seeds, Seed)

    from calibrated_rl.config.load import load_config
    from calibrated_rl.evaluation.asking import committee
    from calibrated_rl.run.saved_run import config_file, open_run
    from calibrated_rl.storage.files import write_json
    from tools.asking.study import Setup, cells, missing, summarise

    source, folder = arguments.run, arguments.out
    config = load_config(config_file(source), arguments.overrides, saved=True)
    if not config.human:
        raise UserError(f"{source}: the run has no scripted human (`human` is empty) that could answer")
    if not config.deterministic:
        raise UserError(f"{source}: cells are compared on the same dialogues, which needs deterministic=true")
    arm = open_run(source, arguments.overrides).policy(arm_name(source, arguments.arm)).name
    settings = Setup(
        source=str(source.resolve()), arm=arm, simulators=[str(f.resolve()) for f in committee(source, arm)],
        candidates=CANDIDATES * counts[-1], updates=arguments.updates, draws=DRAWS, scenarios=arguments.scenarios,
    )  # fmt: skip
    _refuse_others(folder, settings, arguments.overrides)
    all_cells = cells(counts, seeds)
    if missing(folder, all_cells):
        _run(config, source, folder, settings, all_cells)
    summary = summarise(folder, all_cells)
    write_json(folder / "asking.json", summary)
    console.result(_table(summary))
    console.result(f"exact shift: sum of total variations over a dialogue's user turns; {folder / 'asking.json'}")


def _numbers(option: str, text: str, hint: Any) -> list[int]:
    try:
        return [int(converted(hint, number.strip(), ())) for number in text.split(",")]
    except NotAllowed as refused:
        raise UserError(f"{option}: '{text}': {refused.problems[0].text}") from refused


def _refuse_others(folder: Path, settings: "Setup", overrides: list[str]) -> None:
    """A study resumes with the settings it was begun with; seeds, and counts of at most the largest, may be added."""
    from calibrated_rl.storage.files import read_json, write_json

    file, content = folder / "study.json", dataclasses.asdict(settings) | {"overrides": sorted(overrides)}
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
        return
    begun = read_json(file)
    if changed := [key for key in content if begun.get(key) != content[key]]:
        raise UserError(f"{folder} was begun with another {', '.join(changed)}: give the study another --out")


def _run(config: Any, source: Path, folder: Path, settings: "Setup", all_cells: list[Any]) -> None:
    from calibrated_rl.config.load import load_config
    from calibrated_rl.run.saved_run import config_file
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import exclusive
    from calibrated_rl.study.inheritance import take_over
    from calibrated_rl.training.training_run import started
    from tools.asking.study import AskingStudy, missing

    with exclusive(folder):
        for item in take_over(source, load_config(config_file(source), saved=True), folder, config):
            logger.info(f"reusing from {source}, since no changed setting affects it: {item}")
        with started(config, folder, Progress()) as run:
            study = AskingStudy(run, settings)
            for cell in missing(folder, all_cells):
                study.run(cell)


def _table(summary: dict[str, Any]) -> str:
    lines = [f"{'replies':>7}  {'chosen':^22}  {'random':^22}  {'chosen - random':^22}  seeds"]
    for row in summary["rows"]:
        texts = [_text(row.get(key)) for key in ("chosen" if row["count"] else "none", "random", "difference")]
        lines.append(f"{row['count']:>7}  {texts[0]:^22}  {texts[1]:^22}  {texts[2]:^22}  {row.get('seeds', '')}")
    return "\n".join(line.rstrip() for line in lines)


def _text(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
