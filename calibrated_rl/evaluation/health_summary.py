"""The health of the simulators that arms trained with, out of their metrics, for ``summary.json``."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibrated_rl.health.limits import PREFIX

ENDS = 5
"""Updates at each end of training whose rates are given beside that of all."""


def health_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By detector, from the results of one arm with all its seeds: ``mean``, the rate over all judged turns of
    training, ``turns``, how many these are, and ``first`` and ``last``, the rates over the first and the last ``ENDS``
    updates in which turns were judged; a turn counts alike in whichever seed and update. Empty where no user spoke."""
    rows: defaultdict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for result in results:
        for metric in result.get("metrics", ()):
            if metric["name"].startswith(PREFIX):
                rows[metric["name"].removeprefix(PREFIX)][result["seed"], metric["update"]] = metric["value"]
    health = {}
    for name, turns in rows.items():
        if not name.endswith("_turns"):
            continue
        detector = name.removesuffix("_turns")
        rates = rows[detector]
        updates = {seed: sorted(update for s, update in rates if s == seed) for seed, _ in rates}
        first = [(seed, update) for seed, own in updates.items() for update in own[:ENDS]]
        last = [(seed, update) for seed, own in updates.items() for update in own[-ENDS:]]
        health[detector] = {
            "mean": _rate(rates, turns, rates), "turns": sum(turns.values()), "first": _rate(rates, turns, first),
            "last": _rate(rates, turns, last),
        }  # fmt: skip
    return health


def _rate(
    rates: Mapping[tuple[int, int], float], turns: Mapping[tuple[int, int], float], updates: Iterable[tuple[int, int]]
) -> float:
    chosen = list(updates)
    return sum(rates[each] * turns[each] for each in chosen) / sum(turns[each] for each in chosen)
