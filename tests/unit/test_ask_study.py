"""The study of whom to ask: its cells, where it goes on, and the difference that it reports."""

from pathlib import Path

import pytest

from calibrated_rl.storage.files import write_json
from tools.asking.study import CHOSEN, RANDOM, Cell, cells, missing, summarise


def result(folder: Path, cell: Cell, tv: dict[str, float]) -> None:
    (folder / "cells").mkdir(exist_ok=True)
    write_json(folder / "cells" / f"{cell.name}.json", {"tv": tv})


def test_each_seed_has_all_cells_and_what_is_done_is_not_missing(tmp_path: Path) -> None:
    study = cells([100, 400], [0, 7])
    assert [cell.name for cell in study[:5]] == [
        "none-0-0",
        "chosen-100-0",
        "random-100-0",
        "chosen-400-0",
        "random-400-0",
    ]
    assert len({cell.name for cell in study}) == 10 == len(missing(tmp_path, study))
    result(tmp_path, study[1], {"a": 1.0})
    assert study[1] not in missing(tmp_path, study) and len(missing(tmp_path, study)) == 9


def test_chosen_and_random_are_paired_by_seed_and_person(tmp_path: Path) -> None:
    """People differ far more than the two ways do: the paired difference does not see that."""
    study = cells([100, 200], [0, 1, 2])
    for cell in study:
        if (cell.picked, cell.seed) != (RANDOM, 2):  # one seed is not done yet
            better = {CHOSEN: 0.1, RANDOM: 0.0}.get(cell.picked, 0.0)
            result(tmp_path, cell, {str(i): i - better + 0.01 * cell.seed for i in range(5)})
    none, first, second = summarise(tmp_path, study)["rows"]
    assert none["count"] == 0 and none["none"]["mean"] == pytest.approx(2.01) and "difference" not in none
    for row in (first, second):
        assert row["difference"]["mean"] == pytest.approx(-0.1) and row["seeds"] == 2
        assert row["difference"]["high"] < -0.09 and row["chosen"]["high"] - row["chosen"]["low"] > 0.5
