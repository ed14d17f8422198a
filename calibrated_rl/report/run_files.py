"""What the report reads from a run folder: ``summary.json``, ``metrics.parquet`` and ``samples.json``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from calibrated_rl.errors import UserError

Curve = dict[int, dict[int, float]]
"""Value by seed, by update."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run folder; each part is empty where its file is missing."""

    name: str
    summary: dict[str, Any]
    metrics: dict[str, dict[str, Curve]]
    """Curves by arm, by metric."""
    samples: list[dict[str, Any]]

    def arms(self) -> dict[str, Any]:
        found: dict[str, Any] = self.summary.get("arms") or {}
        return found


def read_run(run: Path) -> RunFiles:
    """Read the folder ``run``.

    Raises:
        UserError: there is no such folder, or one of its files cannot be read.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}")
    summary = _read_json(run / "summary.json", {})
    return RunFiles(
        name=str(summary.get("name") or run.resolve().name),
        summary=summary,
        metrics=_read_metrics(run / "metrics.parquet"),
        samples=_read_json(run / "samples.json", []),
    )


def _read_json(file: Path, empty: Any) -> Any:
    if not file.is_file():
        return empty
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, type(empty)):
        raise UserError(f"{file} must hold a JSON {'object' if isinstance(empty, dict) else 'array'}")
    return content


def _read_metrics(file: Path) -> dict[str, dict[str, Curve]]:
    """Curves of the long table; a row that was written again after a restart counts once, the last one."""
    if not file.is_file():
        return {}
    try:
        table = pq.read_table(file, columns=["arm", "seed", "update", "name", "value"])
    except ArrowInvalid as error:
        raise UserError(f"{file} cannot be read as a table of metrics: {error}") from error
    curves: dict[str, dict[str, Curve]] = {}
    columns = (table[name].to_pylist() for name in ("arm", "seed", "update", "name", "value"))
    for arm, seed, update, name, value in zip(*columns, strict=True):
        if value is not None and math.isfinite(value):
            curves.setdefault(arm, {}).setdefault(name, {}).setdefault(update, {})[seed] = value
    return curves
