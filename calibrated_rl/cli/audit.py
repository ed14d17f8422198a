"""Check that a run learned from every requested group of dialogues exactly once, or dropped it for a reason.

    python jobs/audit.py runs/dev

Reads the run folder (arms/, replay/) and starts nothing. Prints a line for each finished arm and seed, and then each
discrepancy. Exit code 1: there is one; 2: it is no run folder.
"""

from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.runtime import console

MAX_PROBLEMS = 10
"""Maximum problems of an arm that are printed; the number of the others follows."""


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    arguments = parser.parse_args()

    from calibrated_rl.run.audit import audit_run
    from calibrated_rl.run.saved_run import config_file

    config_file(arguments.run)
    accounts = audit_run(arguments.run)
    width = max(len(account.name) for account in accounts)
    console.result(f"{'arm':<{width}}  groups requested  learned from once  dropped")
    for account in accounts:
        dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(account.dropped.items())) or "0"
        console.result(f"{account.name:<{width}}  {account.requested:>16}  {account.delivered:>17}  {dropped}")
    problems = [problem for account in accounts for problem in _problem_lines(account.name, account.problems)]
    console.result("\n".join(problems) or "it adds up")
    return 1 if problems else 0


def _problem_lines(name: str, problems: tuple[str, ...]) -> list[str]:
    remainder = [f"{name}: and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    return [f"{name}: {problem}" for problem in problems[:MAX_PROBLEMS]] + remainder
