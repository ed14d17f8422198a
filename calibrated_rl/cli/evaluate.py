"""Evaluate the trained policies of a run again on held-out users, with the run's settings or other ones.

    python jobs/evaluate.py runs/dev [--policy calibrated-0] [key=value ...]

Starts only the policy's engine (and the proxy's, where a proxy replaces the human). Prints the table of the arms,
writes RUN/evaluation.json, and says whether the metrics equal those that the run itself wrote to RUN/arms: in
deterministic mode they do, unless settings were changed.
"""

from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.runtime import console


def main() -> None:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. evaluation.scenarios=500")
    parser.add_argument("--policy", default="", metavar="ARM-SEED", help="evaluate only this one (default: all)")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.api.evaluation import evaluate

    evaluation = evaluate(arguments.run, arguments.overrides, policy=arguments.policy)
    console.result(evaluation.table())
    console.result(f"metrics: {evaluation.file}")
