"""A part that is not in the repository, as a user would write it: one file and one YAML that names it."""

from pathlib import Path

import pytest


def part_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, code: str, settings: str) -> Path:
    """Write ``mine.py`` and ``mine.yaml`` into a folder of their own, which becomes the working directory, and return
    the YAML. Whatever a test does with it then works with these two files alone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text(code)
    (folder / "mine.yaml").write_text(settings)
    monkeypatch.chdir(folder)
    return Path("mine.yaml")
