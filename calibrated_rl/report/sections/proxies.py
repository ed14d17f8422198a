"""How well the proxies stand for people: what they do with the clone of the logged policy, beside
what people did with people on the same scenarios. Left out where no proxies were used."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import PROXIES, PROXIES_BEFORE, interval, look_up, mapping, proxies_of
from calibrated_rl.report.views import Cell


@dataclass(frozen=True, slots=True)
class ProxyRow:
    metric: str
    cells: list[Cell]
    """Of people, and of each proxy its metric and its difference to that of people."""


@dataclass(frozen=True, slots=True)
class Proxies:
    template: ClassVar[str] = "proxies.jinja"
    proxies: list[str]
    rows: list[ProxyRow]
    """Empty while the clone has not been evaluated."""


def view(run: RunFiles) -> Proxies | None:
    if not {PROXIES, PROXIES_BEFORE}.intersection(run.summary):
        return None
    table = proxies_of(run.summary)
    proxies = list(dict.fromkeys(name for metric in table for name in mapping(table, metric, "proxies")))
    rows = []
    for metric in table:
        cells = [Cell(interval(look_up(table, metric, "people")))]
        for name in proxies:
            value, difference = (
                interval(look_up(table, metric, "proxies", name, kind)) for kind in ("value", "difference")
            )
            cells += [Cell(value), Cell(difference, sign=True)]
        rows.append(ProxyRow(metric.replace("_", " "), cells))
    return Proxies(proxies=proxies, rows=rows)
