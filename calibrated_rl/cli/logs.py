"""Check whether files of human dialogues are usable, and convert them into the project's own format.

    python jobs/logs.py check FILE [--format NAME] [--columns dialogue=ticket,side=sender,text=body]
    python jobs/logs.py check [FILE] --config CONFIG [key=value ...]
    python jobs/logs.py convert FILE [FILE ...] [--to runs-format] [--out NAME.runs.jsonl] [--mask-personal-data]

The first reads the file alone. The second checks everything that a run of CONFIG would check: the task (its goals, its
range of rewards), the settings of the reader, the sizes of the splits; FILE replaces the path in the config.

FILE is a file of any known format, compressed or not, a folder, a pattern such as 'logs/*.jsonl.gz' (in quotes), or a
data set of the Hugging Face hub that is on this machine. What a file is, is found out; docs/logs.md has the formats.

Exit code 0: every dialogue is usable. 1: some were refused; each reason is printed with its first records as
file:line: reason (where records are no lines, the number of the record) and with its count. 2: a file is missing, torn
or of a kind that is not read, nothing in it is usable, or a run would refuse it; then nothing is written.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.runtime import console

if TYPE_CHECKING:
    from calibrated_rl.logs.base import LogProblem
    from calibrated_rl.logs.options import FileSettings

JSONL = "calibrated_rl.logs.jsonl:JsonLines"
TO = "runs-format"
"""The project's own format: the only one that is written."""


def check_file(file: str, settings: "FileSettings") -> int:
    """Print how much of ``file`` is usable; returns the exit code.

    Raises:
        UserError: the file is missing or nothing in it is usable.
    """
    from calibrated_rl.logs.reading import read_logs
    from calibrated_rl.logs.summary import summary_lines

    records, reading = read_logs([file], settings)
    _print_fit(file, [record.turns for record in records], reading.problems, summary_lines(reading.report))
    return 1 if reading.problems else 0


def check_casino(file: Path) -> int:
    """The same for the CaSiNo file as published, or its folder."""
    from calibrated_rl.examples.casino.records import read_records

    negotiations, problems = read_records(file)
    _print_fit(str(file), [record.turns for record in negotiations], problems, [])
    return 1 if problems else 0


def _print_fit(
    file: str, dialogues: Sequence[Sequence[Any]], problems: "Sequence[LogProblem]", decided: Sequence[str]
) -> None:
    from calibrated_rl.logs.base import problem_lines

    n_turns = sum(map(len, dialogues))
    fit = f"{file}: {len(dialogues)} dialogues with {n_turns} turns fit, {len(problems)} refused"
    for line in [*problem_lines(problems), fit, *decided]:
        console.result(line)
    console.result("not checked: the task and the splits of a run; add --config CONFIG")


def check_config(config_file: str, overrides: Sequence[str], file: Path | None) -> int:
    """Print what a run of the config would read, split by split; returns the exit code.

    Raises:
        UserError: a run would refuse the logs, in the same words.
    """
    from calibrated_rl.components.component import import_path
    from calibrated_rl.config.load import load_config
    from calibrated_rl.config.log_settings import log_settings
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


def convert(files: Sequence[str], out: Path | None, settings: "FileSettings") -> int:
    """Write the dialogues of ``files`` into ``out`` and print what was decided on the way; returns the exit code.

    Args:
        out: None: ``NAME.runs.jsonl`` in the working directory, NAME from the first file; there must be no such file.

    Raises:
        UserError: a file cannot be read, nothing in them is usable, or the result has no name of its own.
    """
    from calibrated_rl.errors import UserError
    from calibrated_rl.logs.base import problem_lines
    from calibrated_rl.logs.convert import convert_files
    from calibrated_rl.logs.summary import summary_lines

    if out is None:
        out = Path(f"{_stem(files[0])}.runs.jsonl")
        if out.exists():
            raise UserError(f"{out} is there already: name the result by --out (it replaces what is there)")
    done = convert_files(files, out, settings)
    for line in [*problem_lines(done.problems), *summary_lines(done.report)]:
        console.result(line)
    console.result(f"{out}: {done.dialogues} dialogues written, {len(done.problems)} refused")
    return 1 if done.problems else 0


def _stem(name: str) -> str:
    """A name for the result: that of the file, folder or data set, without endings and wild cards."""
    stem = Path(name.rstrip("/")).name.split(".")[0].strip("*?[]-_ ")
    return stem or "logs"


def _settings(options: argparse.Namespace) -> "FileSettings":
    from calibrated_rl.api.logs import file_settings
    from calibrated_rl.errors import UserError

    columns = {}
    for pair in _listed(options.columns):
        what, equals, own = pair.partition("=")
        if not equals:
            raise UserError(f"--columns: '{pair}' is no WHAT=COLUMN, such as text=message")
        columns[what.strip()] = own.strip()
    return file_settings(
        {
            "format": options.format, "columns": columns, "policy": _listed(options.policy),
            "users": _listed(options.users), "strict": options.strict,
            "mask_personal_data": options.mask_personal_data,
        }
    )  # fmt: skip


def _listed(values: Sequence[str]) -> list[str]:
    return [each.strip() for value in values for each in value.split(",") if each.strip()]


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Options that say how files are read; without them it is found out."""
    from calibrated_rl.logs.options import ANY, FORMATS

    parser.add_argument(
        "--format", default=ANY, choices=(ANY, *FORMATS, "jsonl", "casino"), metavar="NAME",
        help=f"one of {', '.join(FORMATS)}; jsonl: as runs; casino (check alone): as published (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", action="append", default=[], metavar="WHAT=COLUMN,...",
        help="names of the file's own columns or keys: dialogue=ticket,side=sender,text=body,time=sent_at; or "
        "messages=chat, where one column has the whole dialogue",
    )  # fmt: skip
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME,...",
        help="speakers that are the policy's side: names, or KEY=VALUE of metadata of a turn",
    )  # fmt: skip
    parser.add_argument("--users", action="append", default=[], metavar="NAME,...", help="the same of the users' side")
    parser.add_argument(
        "--strict", action="store_true", help="refuse dialogues with keys that are not known, instead of keeping them"
    )
    parser.add_argument(
        "--mask-personal-data", action="store_true",
        help="replace e-mail addresses, phone and card numbers (they are counted in any case)",
    )  # fmt: skip


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="is this file usable, and if not which lines")
    checker.add_argument("file", nargs="?", metavar="FILE", help="the log file (casino: or its folder)")
    checker.add_argument("overrides", nargs="*", metavar="key=value", help="with --config: replace settings")
    checker.add_argument("--config", metavar="CONFIG", help="of the run that is to read it; it has the settings, too")
    converter = commands.add_parser("convert", help="write files of any known format as JSON Lines of our own")
    converter.add_argument("files", nargs="+", metavar="FILE", help="files, folders or patterns")
    converter.add_argument("--to", choices=(TO,), default=TO, help="the format to write (default: %(default)s)")
    converter.add_argument(
        "--out", type=command.result_file(), metavar="FILE", help="the file to write (default: NAME.runs.jsonl, here)"
    )
    for each in (checker, converter):
        _add_reading(each)
    return parser, checker


def main(arguments: Sequence[str] | None = None) -> int:
    parser, checker = _parsers()
    options = parser.parse_args(arguments)
    if options.format == "jsonl":
        options.format = "runs"
    if options.command == "convert":
        if options.format == "casino":
            checker.error("--format casino: the reader of the task reads it, and nothing converts it")
        return convert(options.files, options.out, _settings(options))
    if options.config is None:
        if options.file is None or options.overrides:
            checker.error("FILE alone, or --config CONFIG with settings as key=value")
        if options.format == "casino":
            return check_casino(Path(options.file))
        return check_file(options.file, _settings(options))
    ours = {"columns": options.columns, "policy": options.policy, "users": options.users, "strict": options.strict}
    ours |= {"mask_personal_data": options.mask_personal_data, "format": options.format not in ("auto", "runs")}
    if given := [name for name, value in ours.items() if value]:
        checker.error(
            f"--{given[0].replace('_', '-')}: with --config, it is a setting of the config: logs.{given[0]}=..."
        )
    overrides, file = list(options.overrides), options.file
    if file is not None and "=" in file and not Path(file).exists():
        overrides, file = [file, *overrides], None
    return check_config(options.config, overrides, None if file is None else Path(file))
