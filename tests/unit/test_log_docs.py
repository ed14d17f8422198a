"""Every example of the page "Logs" is read by the command below it."""

import re
import shlex
from pathlib import Path

import pytest

from calibrated_rl.cli import logs as job
from calibrated_rl.logs.formats.base import formats
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "logs.md").read_text()
EXAMPLES = re.findall(r"```(?:json|text)\n(.*?)```\n\n```sh\n(calibrated-rl logs [^\n]*)\n```", PAGE, re.DOTALL)
"""Three lines of a file, and the command that reads it."""


def test_every_format_has_an_example() -> None:
    assert len(EXAMPLES) == len(formats()) + 2
    assert all(len(content.splitlines()) == 3 for content, _ in EXAMPLES)


@pytest.mark.parametrize(("content", "command"), EXAMPLES)
def test_the_example_is_read_by_its_command(
    content: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(command)[2:]
    Path(arguments[1]).write_text(content)
    assert job.main(arguments) == 0
    assert ", 0 refused" in capsys.readouterr().out
