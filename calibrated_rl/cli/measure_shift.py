"""How far apart are two sets of dialogues?

    python jobs/measure_shift.py PEOPLE OTHERS [--estimators words,mauve] [--out FILE] [--limit N] [--seed N]
    python jobs/measure_shift.py PEOPLE            two random halves of one set, which should not be told apart
    python jobs/measure_shift.py runs/dev@logs/held_out runs/dev:calibrated      people and a simulator
    python jobs/measure_shift.py runs/dev:uncalibrated runs/dev:calibrated       two simulators

    python jobs/measure_shift.py mine.csv runs/dev@calibrated --reader mine.py:MyLogs --reader-config held_out=0.5

A set is a file of JSON Lines (calibrated_rl/logs/jsonl.py), the CaSiNo folder, or a run folder, with @ARM for the
dialogues of one arm: runs/dev@calibrated. Other logs are read by a reader of yours. These need no engine. RUN:MODEL is
a simulator of a run, which is started: it replies to the people's histories (two simulators: to those of the run's
held-out logs) and talks with the policy that the run started from. The first set is the reference: null bands are drawn
from it. What each figure means, and which may be called a bound, is in docs/shift.md. Exit code 2: a set cannot be
used.
"""

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotNegative, Positive, Seed

if TYPE_CHECKING:
    from calibrated_rl.evaluation.live_simulator import Asked
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.shift.base import Estimate
    from calibrated_rl.shift.compare_sets import Comparison
    from calibrated_rl.shift.sources import LogFiles, SourceDialogues

logger = logging.getLogger(__name__)


DRAWS = 4
"""Replies of a live simulator to each history, where nothing else is said."""


def parser_of() -> argparse.ArgumentParser:
    from calibrated_rl.components.short_names import short_names
    from calibrated_rl.shift import estimators
    from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT

    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("people", metavar="PEOPLE", help="the reference set, as a rule human logs")
    parser.add_argument("others", metavar="OTHERS", nargs="?", help="the set to compare (default: halve PEOPLE)")
    parser.add_argument(
        "--estimators",
        default=",".join(short_names(estimators.__name__)),
        metavar="NAMES",
        help="some of %(default)s (default: all), or import paths of others: package.module:Class, file.py:Class",
    )
    parser.add_argument(
        "--encoder", default=DEFAULT, help="sentence encoder: a package, a folder or 'hashing' (default: %(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=command.allowed(NotNegative),
        default=0,
        metavar="N",
        help="at most N random dialogues of each set",
    )
    parser.add_argument("--seed", type=command.allowed(Seed), default=0, help="of all random draws (default: 0)")
    parser.add_argument(
        "--null-halvings",
        type=command.allowed(NotNegative),
        metavar="N",
        help="random halvings of PEOPLE for the null bands; 0: no bands",
    )
    parser.add_argument(
        "--draws",
        type=command.allowed(Positive),
        metavar="N",
        help="replies of a live simulator to each history (default: 4)",
    )
    parser.add_argument(
        "--reader", metavar="PATH",
        help="import path of the log reader of sets that are of no run: package.module:Class or file.py:Class; the "
        "set is its setting 'path', and SET@held_out one of its splits",
    )  # fmt: skip
    parser.add_argument(
        "--reader-config", action="append", default=[], metavar="KEY=VALUE", help="another setting of the reader"
    )
    parser.add_argument("--task", metavar="PATH", help="import path of the task that the reader's logs are of")
    parser.add_argument(
        "--task-config", action="append", default=[], metavar="KEY=VALUE", help="a setting of that task"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the runs of live simulators that is to be another one, e.g. simulator.engine.threads=2",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=command.result_file(), metavar="FILE", help="write all figures, by turn too, as JSON"
    )
    return parser


def log_files(arguments: argparse.Namespace) -> "LogFiles | None":
    """What ``--reader`` and its settings say; None where it is not given.

    Raises:
        UserError: something of it would not be used.
    """
    from calibrated_rl.config.run_config import settings_of_pairs
    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.live_simulator import live
    from calibrated_rl.shift.sources import LogFiles, is_of_run

    told = vars(arguments)
    for option, of in (("reader_config", "reader"), ("task", "reader"), ("task_config", "task")):
        if told[option] and not told[of]:
            raise UserError(f"--{option.replace('_', '-')} is for --{of}, which is not given")
    if not arguments.reader:
        return None
    sets = [name for name in (arguments.people, arguments.others) if name]
    if all(live(name) is not None or is_of_run(name) for name in sets):
        raise UserError("--reader is for sets that are of no run, and there is none")
    settings = settings_of_pairs(arguments.reader_config, "--reader-config").values
    if "path" in settings:
        raise UserError("--reader-config: 'path' is the set itself, PEOPLE or OTHERS")
    return LogFiles(
        reader=arguments.reader, reader_config=settings, task=arguments.task or "",
        task_config=settings_of_pairs(arguments.task_config, "--task-config").values,
    )  # fmt: skip


def read(arguments: argparse.Namespace, progress: "Progress") -> "Asked | tuple[SourceDialogues, SourceDialogues]":
    """Both sets, cut down to ``--limit``; live simulators have spoken.

    Raises:
        UserError: a set cannot be used, or a number is out of range.
    """
    import numpy as np

    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.live_simulator import LiveSimulator, ask, live
    from calibrated_rl.shift.interface import halve
    from calibrated_rl.shift.sources import SourceDialogues, read_source, some

    first, second = (live(name) if name else None for name in (arguments.people, arguments.others))
    if second is None and (unread := "--set" if arguments.set else "--draws" if arguments.draws else ""):
        raise UserError(f"{unread} is for a live simulator, and neither set is one: RUN:MODEL")
    if first is not None and second is None:
        raise UserError("a live simulator is compared with another one, or stands second: LOGS RUN:MODEL")
    files = log_files(arguments)
    if first is not None:
        people: LiveSimulator | SourceDialogues = LiveSimulator(*first, progress, arguments.set)
    else:
        people = read_source(arguments.people, files)
    if second is not None:
        others = LiveSimulator(*second, progress, arguments.set)
        command.start_ray()
        return ask(people, others, draws=arguments.draws or DRAWS, limit=arguments.limit, seed=arguments.seed)
    assert isinstance(people, SourceDialogues)
    if arguments.others is not None:
        sets = people, read_source(arguments.others, files)
    else:
        halves = halve(people.dialogues, len(people.dialogues), np.random.default_rng((arguments.seed, 7)))
        one, other = (
            SourceDialogues(name=f"{people.name}, {which} half", dialogues=half, left_out=people.left_out)
            for which, half in zip(("one", "other"), halves, strict=True)
        )
        sets = one, other
    for source in sets:
        source.dialogues[:] = some(source.dialogues, arguments.limit, arguments.seed)
    return sets


def main() -> None:
    arguments = parser_of().parse_args()
    from calibrated_rl.components.short_names import short_names
    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.live_simulator import Asked
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.shift import estimators
    from calibrated_rl.shift.checked import check_names
    from calibrated_rl.shift.compare_sets import compare_sets
    from calibrated_rl.shift.interface import DialogueSets
    from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT, HASHING, model_folder
    from calibrated_rl.storage.files import write_json

    progress = Progress()
    names = [name.strip() for name in arguments.estimators.split(",") if name.strip()]
    check_names(names)  # before engines start
    if not names:
        raise UserError(f"no estimator was named; there are {', '.join(short_names(estimators.__name__))}")
    if arguments.encoder not in (DEFAULT, HASHING):  # without the default one, what needs it is left out
        model_folder(arguments.encoder)
    told = read(arguments, progress)
    people, others = (told.people, told.others) if isinstance(told, Asked) else told
    for label, source in (("people", people), ("others", others)):
        left_out = f", {source.left_out} records left out" if source.left_out else ""
        logger.info(f"{label}: {len(source.dialogues)} dialogues of {source.name}{left_out}")
    found = compare_sets(
        DialogueSets(human=people.dialogues, simulator=others.dialogues),
        names,
        encoder=arguments.encoder,
        seed=arguments.seed,
        null_halvings=arguments.null_halvings,
        replies=told.replies if isinstance(told, Asked) else None,
        on_start=lambda name: logger.info(f"measuring: {name}"),
    )
    if isinstance(told, Asked):
        found.figures.update(told.figures)
    progress.close()
    if arguments.out is not None:
        write_json(arguments.out, as_dict(arguments, people, others, found))
    console.result(table(found))
    if arguments.out is not None:
        console.result(f"all figures, by turn too: {arguments.out.resolve()}")


def as_dict(
    arguments: argparse.Namespace, people: "SourceDialogues", others: "SourceDialogues", found: "Comparison"
) -> dict[str, Any]:
    """What ``--out`` holds; figures that are no number are null."""
    from calibrated_rl.shift.reading import reading

    sources = {
        label: {"source": source.name, "dialogues": len(source.dialogues), "left_out": source.left_out}
        for label, source in (("people", people), ("others", others))
    }
    figures = {name: {**figure.as_dict(), "reading": reading(figure)} for name, figure in found.figures.items()}
    told = {"seed": arguments.seed, "limit": arguments.limit, "encoder": arguments.encoder}
    return sources | told | {"matched_replies": found.matched, "figures": figures, "not_measured": found.refused}


def table(found: "Comparison") -> str:
    """The figures as lines of text, then what was not measured and why."""
    from calibrated_rl.shift.reading import reading

    head = ("figure", "value", "95 % interval", "null band", "reading")
    rows = [head, *((name, *_numbers(figure), reading(figure)) for name, figure in found.figures.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"not measured: {name}: {why}" for name, why in found.refused.items()]
    lines.append(
        f"{found.matched} replies of both sides to the same histories"
        + ("" if found.matched else ": no figure here is a per-turn shift, and none is a bound on one")
    )
    return "\n".join(lines)


def _numbers(figure: "Estimate") -> tuple[str, str, str]:
    band = "-" if figure.null_low is None else f"{figure.null_low:.3f} .. {figure.null_high:.3f}"
    return f"{figure.value:.3f}", f"{figure.low:.3f} .. {figure.high:.3f}", band


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command.run(main)
