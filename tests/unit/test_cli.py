"""The console script: every job of the package is a subcommand, and mistakes end with exit code 2."""

import importlib
import sys
from types import SimpleNamespace

import pytest

from calibrated_rl.cli.main import COMMANDS, main
from calibrated_rl.runtime import third_party
from tests.support.paths import ROOT

PACKAGE = ROOT / "calibrated_rl" / "cli"


def test_every_command_has_its_module_and_its_entry_point() -> None:
    modules = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__", "command", "main"}
    assert modules == {name.replace("-", "_") for name in COMMANDS}
    for module in modules:
        assert callable(importlib.import_module(f"calibrated_rl.cli.{module}").main)
        assert (ROOT / "jobs" / f"{module}.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["--help"], 0, "measure-shift"),
        (["--version"], 0, "calibrated-rl"),
        (["audit", "--help"], 0, "usage: calibrated-rl audit"),
        (["audit", "nowhere"], 2, "nowhere"),
        (["audit", "nowhere", "-q", "--log-format", "json"], 2, '"level": "error"'),
        (["audit", "--log-format", "xml", "nowhere"], 2, "invalid choice: 'xml' (choose from"),
        (["measure-shift", "--help"], 0, "usage: calibrated-rl measure-shift"),
    ],
)
def test_the_first_word_is_the_command(
    arguments: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["calibrated-rl", *arguments])
    monkeypatch.setattr(third_party, "atexit", SimpleNamespace(register=print))  # this process goes on
    with pytest.raises(SystemExit) as ended:
        main()
    printed = "".join(capfd.readouterr())
    assert ended.value.code == code and words in printed, printed
