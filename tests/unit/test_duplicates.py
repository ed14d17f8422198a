"""Code of the package stands once: no ten lines are equal in two places, blank lines and imports not counted."""

from collections import defaultdict
from pathlib import Path

import calibrated_rl

PACKAGE = Path(calibrated_rl.__file__).parent
LINES = 10
LOOPS = {("arms/interactive.py", "arms/oracle.py")}
"""An arm's file shows its loop in full, so that the algorithm can be read in one place."""


def code_of(file: Path) -> list[str]:
    """The lines that count."""
    lines, in_import = [], False
    for line in map(str.strip, file.read_text(encoding="utf-8").splitlines()):
        if in_import or line.startswith(("import ", "from ")):
            in_import = (in_import or "(" in line) and ")" not in line
        elif line:
            lines.append(line)
    return lines


def duplicates(files: list[Path], root: Path) -> set[tuple[str, ...]]:
    """The files that share a block, by name."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file in files:
        lines = code_of(file)
        for first in range(len(lines) - LINES + 1):
            places[tuple(lines[first : first + LINES])].append(str(file.relative_to(root)))
    return {tuple(sorted(names)) for names in places.values() if len(names) > 1}


def test_no_ten_lines_stand_twice() -> None:
    assert duplicates(sorted(PACKAGE.rglob("*.py")), PACKAGE) == LOOPS


def test_ten_equal_lines_are_found_whatever_their_indentation(tmp_path: Path) -> None:
    block = [f"x = {number}" for number in range(LINES)]
    (tmp_path / "a.py").write_text("import os\n" + "\n\n".join(block))
    (tmp_path / "b.py").write_text("if True:\n" + "\n".join(f"    {line}" for line in block))
    (tmp_path / "c.py").write_text("\n".join(block[:-1]))
    assert duplicates(sorted(tmp_path.glob("*.py")), tmp_path) == {("a.py", "b.py")}
