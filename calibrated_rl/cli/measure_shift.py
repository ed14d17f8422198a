"""Measure how far apart two sets of dialogues are.

    python jobs/measure_shift.py REFERENCE COMPARED [--estimators words,mauve] [--out FILE] [--limit N] [--seed N]
    python jobs/measure_shift.py REFERENCE         two random halves of one set, which should not be told apart
    python jobs/measure_shift.py runs/dev@logs/held_out runs/dev:calibrated      humans and a simulator
    python jobs/measure_shift.py runs/dev:uncalibrated runs/dev:calibrated       two simulators

    python jobs/measure_shift.py mine.csv runs/dev@calibrated --reader mine.py:MyLogs --reader-config held_out=0.5

A set is a file, folder or pattern of logs (docs/logs.md), the CaSiNo folder, or a run folder, with @ARM for the
dialogues of one arm: runs/dev@calibrated. Other logs are read by a reader of yours. These need no engine. RUN:MODEL is
a simulator of a run, which is started: it replies to the human histories (two simulators: to those of the run's
held-out logs) and talks with the policy that the run started from. The first set is the reference: null bands are drawn
from it. What each estimate means, and which is a bound, is in docs/shift.md. Exit code 2: a set cannot be
used.
"""

import argparse
from typing import TYPE_CHECKING

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotNegative, Positive, Seed

if TYPE_CHECKING:
    from calibrated_rl.shift.sources import LogFiles


def parser_of() -> argparse.ArgumentParser:
    from calibrated_rl.components.short_names import short_names
    from calibrated_rl.shift import estimators
    from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT

    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("reference", metavar="REFERENCE", help="the reference set, as a rule human logs")
    parser.add_argument("compared", metavar="COMPARED", nargs="?", help="the set to compare (default: halve REFERENCE)")
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
        help="random halvings of REFERENCE for the null bands; 0: no bands",
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
        "--out", type=command.result_file(), metavar="FILE", help="write all estimates, by turn too, as JSON"
    )
    return parser


def log_files(arguments: argparse.Namespace) -> "LogFiles | None":
    """The reader and its settings as given by ``--reader``; None without one.

    Raises:
        UserError: one of these options would have no effect.
    """
    from calibrated_rl.config.load import settings_of_pairs
    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.live_simulator import live_name
    from calibrated_rl.shift.sources import LogFiles, is_of_run

    options = vars(arguments)
    for option, required in (("reader_config", "reader"), ("task", "reader"), ("task_config", "task")):
        if options[option] and not options[required]:
            raise UserError(f"--{option.replace('_', '-')} is for --{required}, which is not given")
    if not arguments.reader:
        return None
    sets = [name for name in (arguments.reference, arguments.compared) if name]
    if all(live_name(name) is not None or is_of_run(name) for name in sets):
        raise UserError("--reader is for sets that are of no run, and there is none")
    settings = settings_of_pairs(arguments.reader_config, "--reader-config").values
    if "path" in settings:
        raise UserError("--reader-config: 'path' is the set itself, REFERENCE or COMPARED")
    return LogFiles(
        reader=arguments.reader, reader_config=settings, task=arguments.task or "",
        task_config=settings_of_pairs(arguments.task_config, "--task-config").values,
    )  # fmt: skip


def main() -> None:
    arguments = parser_of().parse_args()
    from calibrated_rl.api.shift import measure_shift
    from calibrated_rl.storage.files import write_json

    result = measure_shift(
        arguments.reference, arguments.compared,
        estimators=[name.strip() for name in arguments.estimators.split(",") if name.strip()],
        encoder=arguments.encoder, limit=arguments.limit, seed=arguments.seed, null_halvings=arguments.null_halvings,
        draws=arguments.draws, reader=log_files(arguments), changes=arguments.set,
    )  # fmt: skip
    if arguments.out is not None:
        settings = {"seed": arguments.seed, "limit": arguments.limit, "encoder": arguments.encoder}
        write_json(arguments.out, result.as_dict() | settings)
    console.result(result.table())
    if arguments.out is not None:
        console.result(f"all estimates, by turn too: {arguments.out.resolve()}")
