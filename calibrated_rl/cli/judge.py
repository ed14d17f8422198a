"""Check a judge against people's ratings of the same dialogues.

    python jobs/judge.py check SET --rating KEY [--config judge.yaml] [--limit N] [--pairs N] [--scale LOW,HIGH]
    python jobs/judge.py check rated.json --rating overall_rating --config judge.yaml --scale 1,10 --pairs 20
    python jobs/judge.py check runs/dev@calibrated --rating reward         the run's judge and the task's own rewards

SET is a file, folder or pattern of logs (docs/logs.md), or a run folder with @ARM, as of jobs/measure_shift.py. KEY is
a number that logs have beside a dialogue (its metadata), by its dotted name; or reward or success. The config has
judge, judge_config and endpoints; that of a run will do. Answers are kept: a second check asks only for what is new.
What each estimate means is in docs/judges.md. Exit code 2: a set, a config or a rating cannot be used, or the judge
gave no verdict at all.
"""

import argparse

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import NotNegative, Seed


def _scale(text: str) -> tuple[float, float]:
    try:
        lowest, highest = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no pair of numbers: write LOW,HIGH, such as 1,10") from None
    return lowest, highest


def parser_of() -> argparse.ArgumentParser:
    parser = command.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="how far does a judge agree with people's ratings")
    checker.add_argument("set", metavar="SET", help="dialogues that people have rated")
    checker.add_argument("--rating", required=True, metavar="KEY", help="name of the rating, or reward, or success")
    checker.add_argument("--config", metavar="FILE", help="judge and endpoints (default: those of the run SET is of)")
    checker.add_argument(
        "--limit", type=command.allowed(NotNegative), default=0, metavar="N", help="at most N random rated dialogues"
    )
    checker.add_argument(
        "--pairs", type=command.allowed(NotNegative), default=0, metavar="N",
        help="compare N pairs of dialogues in both orders, for the bias of position (default: 0)",
    )  # fmt: skip
    checker.add_argument(
        "--scale", type=_scale, metavar="LOW,HIGH", help="least and largest rating (default: those that there are)"
    )
    checker.add_argument("--seed", type=command.allowed(Seed), default=0, help="of all random draws (default: 0)")
    checker.add_argument(
        "--answers", type=command.result_folder, metavar="FOLDER",
        help="where answers are kept (default: the run's folder, or runs/judge-check)",
    )  # fmt: skip
    checker.add_argument("--out", type=command.result_file(), metavar="FILE", help="write all of it as JSON, too")
    return parser


def main() -> None:
    arguments = parser_of().parse_args()
    from calibrated_rl.api.judging import check_judge
    from calibrated_rl.storage.files import write_json

    result = check_judge(
        arguments.set, arguments.rating, config=arguments.config, limit=arguments.limit, pairs=arguments.pairs,
        scale=arguments.scale, seed=arguments.seed, folder=arguments.answers,
    )  # fmt: skip
    if arguments.out is not None:
        write_json(arguments.out, result.as_dict() | {"seed": arguments.seed, "limit": arguments.limit})
    console.result(result.table())
    if arguments.out is not None:
        console.result(f"all of it: {arguments.out.resolve()}")
