"""Say whether a file of human dialogues fits, and if not which lines, and why.

    python jobs/logs.py check FILE [--format jsonl|casino]

Exit code 0: every dialogue fits. 1: some were refused; each is named on stdout as file:line: reason (for
casino, the number of the record instead of the line). 2: the file is missing or nothing in it is usable.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Also runs as ``python jobs/logs.py`` from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calibrated_rl.dialogue import Side
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.casino_records import read_records
from calibrated_rl.logs.jsonl import read_jsonl


def check(file: Path, kind: str) -> tuple[list[Sequence[tuple[Side, str]]], list[LogProblem]]:
    """The turns of every dialogue that fits, and what was refused.

    Raises:
        UserError: the file is missing or nothing in it is usable.
    """
    if kind == "casino":
        negotiations, problems = read_records(file)
        return [record.turns for record in negotiations], problems
    records, problems = read_jsonl(file)
    return [record.turns for record in records], problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="jobs/logs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="does this file fit, and if not which line")
    checker.add_argument("file", type=Path, metavar="FILE", help="the log file (casino: or its folder)")
    checker.add_argument(
        "--format",
        choices=("jsonl", "casino"),
        default="jsonl",
        help="jsonl: one dialogue a line, as calibrated_rl/logs/jsonl.py documents (default); "
        "casino: the CaSiNo file as published",
    )
    options = parser.parse_args(arguments)
    try:
        dialogues, problems = check(options.file, options.format)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem)
    turns = sum(len(dialogue) for dialogue in dialogues)
    print(f"{options.file}: {len(dialogues)} dialogues with {turns} turns fit, {len(problems)} refused")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
