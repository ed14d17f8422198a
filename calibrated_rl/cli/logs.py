"""Check whether a file of human dialogues is usable, and if not which lines, and why.

    python jobs/logs.py check FILE [--format jsonl|casino]
    python jobs/logs.py check [FILE] --config CONFIG [key=value ...]

The first reads the file alone. The second checks everything that a run of CONFIG would check: the task (its goals, its
range of rewards), the settings of the reader, the sizes of the splits; FILE replaces the path in the config.

Exit code 0: every dialogue is usable. 1: some were refused; each reason is printed with its first records as
file:line: reason (for casino, the number of the record instead of the line) and with its count. 2: the file is missing
or nothing in it is usable, or a run would refuse it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.runtime import console

JSONL = "calibrated_rl.logs.jsonl:JsonLines"


def check_file(file: Path, file_format: str) -> int:
    """Print how much of ``file`` is usable; returns the exit code.

    Raises:
        UserError: the file is missing or nothing in it is usable.
    """
    from calibrated_rl.examples.casino.records import read_records
    from calibrated_rl.logs.base import problem_lines
    from calibrated_rl.logs.jsonl import read_jsonl

    if file_format == "casino":
        negotiations, problems = read_records(file)
        dialogues = [record.turns for record in negotiations]
    else:
        records, problems = read_jsonl(file)
        dialogues = [record.turns for record in records]
    for line in problem_lines(problems):
        console.result(line)
    turns = sum(len(dialogue) for dialogue in dialogues)
    console.result(f"{file}: {len(dialogues)} dialogues with {turns} turns fit, {len(problems)} refused")
    console.result("not checked: the task and the splits of a run; add --config CONFIG")
    return 1 if problems else 0


def check_config(config_file: str, overrides: Sequence[str], file: Path | None) -> int:
    """Print what a run of the config would read, split by split; returns the exit code.

    Raises:
        UserError: a run would refuse the logs, in the same words.
    """
    from calibrated_rl.components.component import import_path
    from calibrated_rl.config.checks import log_settings
    from calibrated_rl.config.run_config import load_config
    from calibrated_rl.data.dialogue import Split
    from calibrated_rl.errors import UserError
    from calibrated_rl.logs.base import problem_lines
    from calibrated_rl.logs.checked import build_reader
    from calibrated_rl.run.log_checks import check_evaluation, check_logs
    from calibrated_rl.tasks.checked import build_task

    config = load_config(config_file, overrides)
    path, settings = str(config.logs["reader"]), log_settings(config)
    if file is not None:
        has_path = "path" in {field.name for field in fields(import_path(path).Config)}
        path, settings = (path, settings | {"path": str(file)}) if has_path else (JSONL, {"path": str(file)})
    task = build_task(config.task, config.task_config, "task_config")
    reader = build_reader(path, settings, "logs", task)
    refusals, logs_by_split, counts = [], {}, []
    for split in Split:
        try:
            logs = logs_by_split[split] = reader.read(split)
        except UserError as error:
            refusals.append(error)
            counts.append(f"{split} 0")
        else:
            counts.append(f"{split} {len(logs)} ({sum(len(log.turns) for log in logs)} turns)")
    for line in problem_lines(reader.problems):
        console.result(line)
    console.result(f"dialogues a split: {', '.join(counts)}; {len(reader.problems)} refused")
    if refusals:
        raise refusals[0]
    check_logs(config, task, logs_by_split)
    if config.has_eval_user:
        check_evaluation(task, config.evaluation)
    return 1 if reader.problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="is this file usable, and if not which lines")
    checker.add_argument("file", nargs="?", metavar="FILE", help="the log file (casino: or its folder)")
    checker.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: replace settings")
    checker.add_argument("--config", metavar="CONFIG", help="of the run that is to read it")
    checker.add_argument(
        "--format",
        choices=("jsonl", "casino"),
        default="jsonl",
        help="jsonl: one dialogue a line, as calibrated_rl/logs/jsonl.py documents (default); "
        "casino: the CaSiNo file as published; with --config, the config's reader decides",
    )
    options = parser.parse_args(arguments)
    if options.config is None:
        if options.file is None or options.overrides:
            checker.error("FILE alone, or --config CONFIG with settings as key=value")
        return check_file(Path(options.file), options.format)
    overrides, file = list(options.overrides), options.file
    if file is not None and "=" in file and not Path(file).exists():
        overrides, file = [file, *overrides], None
    return check_config(options.config, overrides, None if file is None else Path(file))
