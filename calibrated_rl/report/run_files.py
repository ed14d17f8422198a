"""What the report reads from a run folder: ``summary.json``, ``metrics.parquet``, ``samples.json``, ``config.yaml``."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]
from pyarrow import ArrowInvalid

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.report.arms import in_order
from calibrated_rl.report.values import mapping
from calibrated_rl.settings.moved import current_metric
from calibrated_rl.storage.files import read_json

_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

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
    config: dict[str, Any]
    """The resolved config."""

    def arms(self) -> dict[str, dict[str, Any]]:
        """The metrics of every arm, in the order of tables; empty for an arm that has none."""
        arms = mapping(self.summary, "arms")
        return {arm: mapping(arms, arm) for arm in in_order(arms)}

    def curves(self, names: Iterable[str]) -> dict[str, dict[str, Curve]]:
        """Curves by metric, by arm, of those among ``names`` that were logged."""
        by_name = {name: {arm: self.metrics[arm][name] for arm in self.metrics if name in self.metrics[arm]}
                   for name in names}  # fmt: skip
        return {name: by_arm for name, by_arm in by_name.items() if by_arm}

    def has_eval_user(self) -> bool:
        """Whether any arm was evaluated with held-out users or a stand-in."""
        return any(values.get("held_out") for values in self.arms().values())


def read_run(run: Path) -> RunFiles:
    """Read the folder ``run``.

    Raises:
        UserError: there is no such folder, or one of its files cannot be read.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}")
    summary, samples = run / "summary.json", run / "samples.json"
    content = _renamed(_drawable(read_json(summary))) if summary.is_file() else {}
    return RunFiles(
        name=str(content.get("name") or run.resolve().name),
        summary=content,
        metrics=_read_metrics(run / "metrics.parquet"),
        samples=_drawable(read_json(samples, list)) if samples.is_file() else [],
        config=_read_config(run / "config.yaml"),
    )


def _drawable(tree: Any) -> Any:
    """The same with what neither UTF-8 nor XML can represent replaced in all texts, names included: halves of surrogate
    pairs and control characters would cost the page or a plot."""
    if isinstance(tree, dict):
        return {_NO_TEXT.sub("\ufffd", name): _drawable(subtree) for name, subtree in tree.items()}
    if isinstance(tree, list):
        return [_drawable(subtree) for subtree in tree]
    return _NO_TEXT.sub("\ufffd", tree) if isinstance(tree, str) else tree


def _renamed(summary: dict[str, Any]) -> dict[str, Any]:
    """``summary`` in which the metrics of populations have the names of today, whichever version wrote it."""
    simulator = mapping(summary, "simulator")
    for phase in ("before", "after"):
        populations = mapping(simulator, phase, "populations")
        if not populations:
            continue
        current = {
            section: {current_metric(name): value for name, value in mapping(populations, section).items()}
            for section in ("figures", "refused")
        }
        simulator[phase] = {**simulator[phase], "populations": {**populations, **current}}
    return {**summary, "simulator": simulator} if simulator else summary


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is not valid YAML: {first_line(error)}") from error
    return content if isinstance(content, dict) else {}


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
