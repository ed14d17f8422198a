"""Whether the proxies that stand for people are fit to judge: what they do with the clone of the logged policy, beside
what people did with people on the same scenarios. Left out where no proxies were used."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import interval, look_up, mapping
from calibrated_rl.report.views import Cell


@dataclass(frozen=True, slots=True)
class JudgeRow:
    metric: str
    cells: list[Cell]
    """Of people, and of each proxy its metric and its difference to that of people."""


@dataclass(frozen=True, slots=True)
class Judges:
    template: ClassVar[str] = "judges.jinja"
    proxies: list[str]
    rows: list[JudgeRow]
    """Empty while the clone has not been evaluated."""


def view(run: RunFiles) -> Judges | None:
    if "judges" not in run.summary:
        return None
    table = mapping(run.summary, "judges")
    proxies = list(dict.fromkeys(name for metric in table for name in mapping(table, metric, "proxies")))
    rows = []
    for metric in table:
        cells = [Cell(interval(look_up(table, metric, "people")))]
        for name in proxies:
            value, difference = (
                interval(look_up(table, metric, "proxies", name, kind)) for kind in ("value", "difference")
            )
            cells += [Cell(value), Cell(difference, sign=True)]
        rows.append(JudgeRow(metric.replace("_", " "), cells))
    return Judges(proxies=proxies, rows=rows)
