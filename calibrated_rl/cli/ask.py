"""Pick the histories of a run's current policy on which a human's reply would help the simulator most.

    python jobs/ask.py runs/dev --count 100 --out ask.jsonl [key=value ...]
    python jobs/ask.py runs/dev --count 100 --out answered.jsonl --answer      the run's scripted human replies

Writes JSON Lines, the most useful first: histories on which the run's simulators disagree, to which the policy often
comes, each kind once (calibrated_rl/calibration/worth_asking.py). Fill in the empty last turn of as many lines as you
like; calibration.asked=ask.jsonl then aligns simulators with these replies, too. --at-random picks among the same
histories at random, to compare. The run need not be finished. Only the simulator's engine is started.
"""

from pathlib import Path

from calibrated_rl.api.asking import CANDIDATES, DRAWS, UPDATES
from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Positive, Seed


def main() -> None:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. simulator.engine.threads=2")
    parser.add_argument("--count", type=command.allowed(Positive), required=True, metavar="N", help="histories to pick")
    parser.add_argument("--out", type=command.result_file(), required=True, metavar="FILE", help="a file to be made")
    parser.add_argument(
        "--arm", default="", metavar="ARM-SEED", help="whose policy (default: the first calibrated one)"
    )
    parser.add_argument("--answer", action="store_true", help="let the run's scripted human reply")
    parser.add_argument("--at-random", action="store_true", help="pick at random; no engine is started")
    parser.add_argument(
        "--updates", type=command.allowed(Positive), default=UPDATES, metavar="N",
        help=f"look at dialogues of at most so many of the last updates (default {UPDATES})",
    )  # fmt: skip
    parser.add_argument(
        "--candidates", type=command.allowed(Positive), default=0, metavar="N",
        help=f"look at so many of their histories (default: {CANDIDATES} times --count)",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=command.allowed(Positive), default=DRAWS, metavar="N",
        help=f"replies of each simulator to each history (default {DRAWS})",
    )  # fmt: skip
    parser.add_argument("--seed", type=command.allowed(Seed), default=0, metavar="N", help="of all random draws")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.api.asking import ask

    asked = ask(
        arguments.run, arguments.out, count=arguments.count, arm=arguments.arm, at_random=arguments.at_random,
        answer=arguments.answer, updates=arguments.updates, candidates=arguments.candidates, draws=arguments.draws,
        seed=arguments.seed, overrides=arguments.overrides,
    )  # fmt: skip
    if asked.disagreement is not None:
        console.result(
            f"simulators: {', '.join(asked.simulators)}; they disagree by {asked.disagreement:.3f} nats on the "
            f"histories that were picked, by {asked.disagreement_of_all:.3f} on all {asked.candidates}"
        )
    console.result(f"{asked.count} histories: {asked.file}")
