"""A study's variants: the same run with a few settings changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import MAIN_PAIR, SECOND_PAIR, in_order, pair_label, style
from calibrated_rl.report.deployed import deployed
from calibrated_rl.report.plots import variants as plots
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION, Cell, Plot


@dataclass(frozen=True, slots=True)
class VariantRow:
    name: str
    change: str
    """What differs from the run, as ``key=value``."""
    seeds: str
    """Their number."""
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The variants that change one number."""

    setting: str
    key: str
    own_value: float | None
    """The run's own; None where its config has no number there."""
    plot: Plot | None


@dataclass(frozen=True, slots=True)
class Variants:
    template: ClassVar[str] = "variants.jinja"
    columns: list[str]
    """After the variant's name and the number of its seeds."""
    rows: list[VariantRow]
    sweeps: list[Sweep]


def view(run: RunFiles) -> Variants | None:
    """A table of all variants below the run itself, and a plot for each number that several variants change;
    nothing where the run has no variants."""
    variants = mapping(run.summary, "variants")
    if not variants:
        return None
    arms = in_order(arm for name in variants for arm in mapping(variants, name, "arms"))
    pairs = [pair for pair in (MAIN_PAIR, SECOND_PAIR)
             if any(_difference(variants[name], pair) for name in variants)]  # fmt: skip
    return Variants(
        columns=[*(style(arm).label for arm in arms), *map(pair_label, pairs), "classifier, before",
                 "classifier, after"],
        rows=[
            _row("this run", "as configured", run.summary, arms, pairs),
            *(_row(name, " ".join(changes(variants[name])), variants[name], arms, pairs) for name in variants),
        ],
        sweeps=[_sweep(run, key, points, arms) for key, points in sweeps(run).items()],
    )  # fmt: skip


def _row(name: str, change: str, summary: Any, arms: list[str], pairs: list[str]) -> VariantRow:
    seeds = look_up(summary, "seeds")
    return VariantRow(
        name=name,
        change=change,
        seeds=str(len(seeds)) if isinstance(seeds, list) else "–",
        cells=[
            *(Cell(_reward(summary, arm)) for arm in arms),
            *(Cell(_difference(summary, pair), sign=True) for pair in pairs),
            *(Cell(interval(look_up(summary, "simulator", phase, "classifier_accuracy"))) for phase in CALIBRATION),
        ],
    )


def _sweep(run: RunFiles, key: str, points: list[tuple[float, Any]], arms: list[str]) -> Sweep:
    setting = key.split(".")[-1].replace("_", " ")
    rewards = {arm: [(x, value) for x, summary in points if (value := _reward(summary, arm)) is not None]
               for arm in arms}  # fmt: skip
    rewards = {arm: values for arm, values in rewards.items() if len(values) > 1}
    differences = [(x, value) for x, summary in points if (value := _difference(summary, MAIN_PAIR)) is not None]
    fig = plots.sweep(setting, rewards, differences) if rewards or differences else None
    return Sweep(
        setting=setting,
        key=key,
        own_value=own_value(run, key),
        plot=Plot.of(fig, f"held-out reward by {setting}") if fig else None,
    )


def _reward(summary: Any, arm: str) -> Interval | None:
    return interval(look_up(summary, "arms", arm, deployed(summary).setting, "reward"))


def _difference(summary: Any, pair: str) -> Interval | None:
    return interval(look_up(summary, deployed(summary).paired, pair))


def changes(summary: Any) -> list[str]:
    """What a variant changes, as ``key=value``."""
    change = look_up(summary, "change")
    return [str(setting) for setting in change] if isinstance(change, list) else []


def sweeps(run: RunFiles) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """By setting: its values, ascending, with the metrics there, over the variants that change this one number
    and nothing else. The run itself is among them where its config has a number there. Settings that only one
    variant changes are left out."""
    variants = mapping(run.summary, "variants")
    by_key: dict[str, dict[float, Mapping[str, Any]]] = {}
    for name in variants:
        key, _, text = "".join(changes(variants[name])[:1]).partition("=")
        value = _number(text)
        if len(changes(variants[name])) == 1 and value is not None:
            by_key.setdefault(key.strip(), {})[value] = mapping(variants, name)
    ascending = {}
    for key, by_value in by_key.items():
        if len(by_value) < 2:
            continue
        value_of_run = own_value(run, key)
        if value_of_run is not None:
            by_value.setdefault(value_of_run, run.summary)
        ascending[key] = sorted(by_value.items(), key=lambda item: item[0])
    return ascending


def own_value(run: RunFiles, key: str) -> float | None:
    """The number that the run itself has under a dotted key of its config."""
    return finite(look_up(run.config, *key.split(".")))


def _number(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None
