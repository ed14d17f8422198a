"""Reads one metric of a run over training from what its arm has left."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibrated_rl.errors import UserError
from calibrated_rl.report.plots.curves import Line
from calibrated_rl.run.arm_results import read_result


def lines_of(texts: Sequence[str], metric: str, against: str) -> dict[str, Line]:
    """Lines by name; see ``line_of``.

    Raises:
        UserError: two have one name, or as ``line_of``.
    """
    by_name: dict[str, Line] = {}
    for text in texts:
        name, line = line_of(text, metric, against)
        if name in by_name:
            raise UserError(f"{text}: another line is called '{name}', too; put a name before it: NAME=RUN")
        by_name[name] = line
    return by_name


def line_of(text: str, metric: str, against: str) -> tuple[str, Line]:
    """Name and line of ``[NAME=]RUN[:ARM-SEED]``.

    Args:
        against: ``updates``, or ``seconds`` that the updates took.

    Raises:
        UserError: there is no such run, arm or metric, or several arms to choose from.
    """
    name, _, run_and_arm = text.rpartition("=")
    folder, _, arm = run_and_arm.partition(":")
    if not folder or not Path(folder).is_dir():
        raise UserError(f"{text}: there is no run folder '{folder}'")
    files = sorted((Path(folder) / "arms").glob("*.json"))
    matching_files = [file for file in files if file.stem == arm] if arm else files
    if len(matching_files) != 1:
        available = ", ".join(file.stem for file in files) or "none"
        raise UserError(f"{text}: name one finished arm as RUN:ARM-SEED; in {folder} there are: {available}")
    metrics = read_result(matching_files[0])["metrics"]
    values = {int(row["update"]): float(row["value"]) for row in metrics if row["name"] == metric}
    if not values:
        names = ", ".join(sorted({row["name"] for row in metrics}))
        raise UserError(f"{text}: there is no metric '{metric}'; there are: {names}")
    updates = sorted(values)
    at = np.array(updates, np.float64) + 1
    if against == "seconds":
        update_seconds = {int(row["update"]): float(row["value"]) for row in metrics if row["name"] == "seconds_update"}
        if not update_seconds:
            raise UserError(f"{text}: the run does not say how long its updates took; draw it against updates")
        elapsed = np.cumsum([update_seconds.get(update, 0.0) for update in range(updates[-1] + 1)])
        at = elapsed[updates]
    return name or f"{folder}:{matching_files[0].stem}", Line(at, np.array([values[update] for update in updates]))
