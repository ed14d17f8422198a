"""What commands print: which lines, in which form, and that the result comes through."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from calibrated_rl.cli import command
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console, third_party
from calibrated_rl.runtime.progress import Progress

logger = logging.getLogger("calibrated_rl.some.module")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(third_party.VERBOSE, raising=False)
    yield
    console.reset()
    os.environ.pop(third_party.VERBOSE, None)


def job(*arguments: str) -> None:
    """Reads its command line as all jobs do, logs at each level, and has a result."""
    command.Parser(description="a job").parse_args(arguments)
    logger.debug("a detail")
    logger.info("a step")
    logger.warning("a loss")
    logging.getLogger("research.theory").info("a figure")
    logging.getLogger("tools.bench").error("a stop")
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("somebody.else").warning("a retry")
    console.result("arm  reward\nbest  +1.0")
    console.result("report: somewhere")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


STEPS = ["a step", "warning: a loss", "a figure", "error: a stop", "warning: somebody.else: a retry"]
RESULT = ["arm  reward", "best  +1.0", "report: somewhere"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], STEPS),
        (["-v"], ["debug: a detail", *STEPS[:4], "somebody.else: chatter", STEPS[4]]),
        (["--verbose"], ["debug: a detail", *STEPS[:4], "somebody.else: chatter", STEPS[4]]),
        (["-q"], [line for line in STEPS if ": " in line]),
        (["--quiet"], [line for line in STEPS if ": " in line]),
    ],
)
def test_levels(flags: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job(*flags)
    *log, one, two, three = lines(capsys)
    assert [one, two, three] == RESULT
    assert [line.partition(" s] ")[2] for line in log] == expected
    assert all(0 <= float(line[1:].partition(" s] ")[0]) < 60 and line[7:11] == " s] " for line in log)


def test_json_lines_hold_all_fields_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    job("--log-format", "json")
    found = [json.loads(line) for line in lines(capsys)]
    assert all(set(each) == {"time", "seconds", "level", "logger", "message"} for each in found)
    assert [each["level"] for each in found] == ["info", "warning", "info", "error", "warning", "result", "result"]
    assert found[0]["logger"] == "calibrated_rl.some.module" and found[0]["message"] == "a step"
    assert found[-2]["message"] == "arm  reward\nbest  +1.0" and found[-1]["message"] == "report: somewhere"
    for each in found:
        at = datetime.fromisoformat(each["time"])
        assert at.utcoffset() == UTC.utcoffset(None) and abs((at - before).total_seconds()) < 60
        assert 0 <= each["seconds"] < 60


def test_exceptions_stay_with_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json"):
        console.configure(log_format=log_format)  # type: ignore[arg-type]
        try:
            raise ValueError("of a kind")
        except ValueError:
            logger.exception("it ended")
    *text, last = lines(capsys)
    assert text[0].endswith("error: it ended") and text[-1] == "ValueError: of a kind"
    assert json.loads(last)["exception"].endswith("ValueError: of a kind")


def test_why_a_command_ends_stands_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(logging.WARNING)
    assert command.report_error(UserError("no such file")) == 2
    assert capsys.readouterr() == ("", "error: no such file\n")
    console.configure(log_format="json")
    assert command.report_error(UserError("no such file")) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and json.loads(printed.err)["message"] == "no such file"
    assert json.loads(printed.err)["level"] == "error"


@pytest.mark.parametrize("flags", [["--log-format", "xml"], ["-v", "-q"], ["--verbose", "--quiet"]])
def test_what_makes_no_sense_is_refused(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["job", *flags])
    monkeypatch.setattr(third_party, "hush", lambda: None)  # it would close what pytest reports to
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: command.Parser(description="a job").parse_args())
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and flags[-1] in printed.err


@pytest.mark.parametrize("given", [["-v", "check"], ["check", "-v"]])
def test_options_may_stand_before_and_after_a_subcommand(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.Parser(description="a job")
    parser.add_subparsers().add_parser("check")
    parser.parse_args(given)
    logger.debug("a detail")
    assert lines(capsys)[0].endswith("debug: a detail")


def test_nothing_is_printed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure()
    console.configure()
    logger.info("a step")
    assert len(lines(capsys)) == 1


def test_a_library_prints_nothing_but_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    logger.info("a step")
    logger.warning("a loss")
    assert capsys.readouterr() == ("", "a loss\n")


class Terminal(io.StringIO):
    """What a terminal is sent, on both outputs."""

    def isatty(self) -> bool:
        return True


def screen(sent: str) -> list[str]:
    """The lines on a terminal that was sent this, with what was overwritten gone."""
    shown = [""]
    for part in sent.replace("\x1b[A", "").split("\n"):
        for text in part.split("\r"):
            shown[-1] = text + shown[-1][len(text) :]
        shown.append("")
    return [line.rstrip() for line in shown if line.strip()]


def test_lines_and_bars_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    console.configure()
    progress = Progress()
    step = progress("fitting")
    for done in range(1, 4):
        step(done, 3)
        logger.info(f"line {done}")
    assert "fitting" in terminal.getvalue() and "fitting" in screen(terminal.getvalue())[-1]
    progress.close()
    console.result("table")
    shown = screen(terminal.getvalue())
    assert [line.partition(" s] ")[2] or line for line in shown] == ["line 1", "line 2", "line 3", "table"]


def test_no_bar_where_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    console.configure(logging.WARNING)
    Progress()("fitting")(1, 3)
    console.reset()  # as in a library
    Progress()("fitting")(1, 3)
    assert terminal.getvalue() == ""


def test_a_reader_who_leaves_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    errors = io.StringIO()
    console.configure()
    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "stderr", errors)
    logger.info("a step")
    console.result("table")
    assert errors.getvalue() == ""


def test_verbose_lets_libraries_speak_here_and_in_processes_to_come() -> None:
    assert third_party.engine_environment() == {"VLLM_LOGGING_LEVEL": "ERROR"}
    assert third_party.ray_options(local=True) == {"logging_level": logging.ERROR, "log_to_driver": False}
    assert third_party.ray_options(local=False) == {"logging_level": logging.ERROR}
    assert third_party.worker_environment() == {}
    console.configure(logging.DEBUG)
    assert third_party.engine_environment() == {"VLLM_LOGGING_LEVEL": "INFO"}
    assert third_party.ray_options(local=True) == {"logging_level": logging.INFO, "log_to_driver": True}
    assert third_party.worker_environment() == {third_party.VERBOSE: "1"}
