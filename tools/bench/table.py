"""All rows of a machine: reads them from YAML, runs each in a process of its own, and prints them as a table."""

import dataclasses
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from calibrated_rl.components import component
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import PartPathOrNone, Range
from calibrated_rl.settings.yaml_files import read_yaml
from tools.bench.base import NotMeasured, Row

logger = logging.getLogger(__name__)

FIELDS = tuple(field_.name for field_ in dataclasses.fields(Row))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowConfig:
    """The benchmark of a row."""

    benchmark: PartPathOrNone = ""
    """Import path of its class."""
    config: dict[str, Any] = field(default_factory=dict)
    """The class's own settings."""
    timeout_seconds: Annotated[float, Range(above=0)] = 900.0
    """A row that takes longer is ended and counts as not measured."""


def read_rows(file: Path) -> dict[str, RowConfig]:
    """The rows that ``file`` names, in its order.

    Raises:
        UserError: the file is missing or malformed, or a row has an unknown key or no class.
    """
    rows = {}
    for name, values in read_yaml(file, "benchmark").values.items():
        row = component.strict_config(RowConfig, values, f"{file}, row '{name}'")
        component.import_path(row.benchmark)
        rows[str(name)] = row
    return rows


def choose(rows: Mapping[str, RowConfig], only: Sequence[str], file: Path) -> dict[str, RowConfig]:
    """The rows in ``only``; all rows if it is empty.

    Raises:
        UserError: there is no such row.
    """
    for name in only:
        if name not in rows:
            raise UserError(f"there is no row '{name}' in {file}; rows: {', '.join(rows)}")
    return {name: row for name, row in rows.items() if name in only or not only}


def measure(row: RowConfig, location: str) -> dict[str, Any]:
    """The fields of the row, measured in this process; where that is not possible, ``how`` has the reason."""
    benchmark = component.build(row.benchmark, row.config, location)
    try:
        return dataclasses.asdict(benchmark.measure())
    except NotMeasured as reason:
        return not_measured(str(reason))


def not_measured(reason: str) -> dict[str, Any]:
    return {name: None for name in FIELDS} | {"how": f"not measured: {reason}"}


def run_all(rows: Mapping[str, RowConfig], command: Sequence[str]) -> list[dict[str, Any]]:
    """Run ``command`` with each row's name after it; it prints the row's fields as JSON on its last line."""
    results = []
    for name, row in rows.items():
        began = time.monotonic()
        logger.info(f"{name} ...")
        # A session of its own, so that a row that hangs is ended with all that it started.
        with subprocess.Popen(
            [*command, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                output, errors = process.communicate(timeout=row.timeout_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                output, errors = "", f"it took longer than {row.timeout_seconds:g} s"
        if process.returncode == 0:
            values = json.loads(output.strip().splitlines()[-1])
        else:
            values = not_measured((errors.strip() or f"exit code {process.returncode}").splitlines()[-1])
        results.append({"name": name} | values)
        logger.info(f"{line_of(results[-1])} ({time.monotonic() - began:.0f} s)")
    return results


def machine() -> str:
    """The machine in words."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = psutil.virtual_memory().total / 2**30
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB memory, {', '.join(gpus) or 'no GPU'}; {sys.platform}"


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def line_of(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    if row["value"] is None:
        return f"{row['name']:<24} {row['how']}"
    return (
        f"{row['name']:<24} {row['value']:>12.4g} {row['limit']:>12.4g} {row['ratio']:>8.3f} {row['goal']:>6g}  "
        f"{'met' if row['met'] else 'MISSED'}"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, and below it how each value was measured."""
    head = f"{'row':<24} {'value':>12} {'limit':>12} {'ratio':>8} {'goal':>6}"
    notes = [f"{row['name']}: {row['how']}" for row in rows if row["value"] is not None]
    return "\n".join([head, *map(line_of, rows), "", *notes])
