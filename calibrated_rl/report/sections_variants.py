"""The section about a study's variants: the same run with a few settings changed."""

from html import escape
from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.arms import in_order, pair_label, style
from calibrated_rl.report.plots import variants as plots_variants
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping

PAIR = "calibrated-interactive"
PAIRS = (PAIR, "calibrated-static")
"""Differences that the table shows, where some variant has them."""


def variants(run: RunFiles) -> str:
    """A table of all variants below the run itself, and a plot for each number that several variants change;
    nothing where the run has no variants."""
    found = mapping(run.summary, "variants")
    if not found:
        return ""
    arms = in_order(arm for name in found for arm in mapping(found, name, "arms"))
    pairs = [pair for pair in PAIRS if any(look_up(found, name, "paired", pair) for name in found)]
    rows = [_row("this run", "as configured", run.summary, arms, pairs)]
    rows += [_row(name, " ".join(changes(found[name])), found[name], arms, pairs) for name in found]
    header = ["variant", "seeds", *(style(arm).label for arm in arms), *map(pair_label, pairs),
              "classifier, before", "classifier, after"]  # fmt: skip
    parts = [
        markup.note(
            "The same run with one thing changed: held-out reward of each arm, the paired difference over the same "
            "scenarios and people, and how well a classifier tells simulator from human before and after "
            "calibration (0.5: not at all). 95 % CIs; fewer seeds, wider intervals."
        ),
        markup.table(header, rows),
    ]
    for key, points in sweeps(run).items():
        short = key.split(".")[-1].replace("_", " ")
        parts.append(f"<h3>By {escape(short)}</h3>")
        here = own_value(run, key)
        if here is not None:
            parts.append(markup.note(f"{key}; this run itself has {here:g}."))
        rewards = {arm: [(x, value) for x, figures in points
                         if (value := interval(look_up(figures, "arms", arm, "held_out", "reward"))) is not None]
                   for arm in arms}  # fmt: skip
        rewards = {arm: values for arm, values in rewards.items() if len(values) > 1}
        differences = [(x, value) for x, figures in points
                       if (value := interval(look_up(figures, "paired", PAIR))) is not None]  # fmt: skip
        if rewards or differences:
            parts.append(markup.image(plots_variants.sweep(short, rewards, differences), f"held-out reward by {short}"))
        else:
            parts.append(markup.missing())
    return markup.section("Variants", *parts)


def changes(figures: Any) -> list[str]:
    """What a variant changes, as ``key=value``."""
    raw = look_up(figures, "change")
    return [str(change) for change in raw] if isinstance(raw, list) else []


def sweeps(run: RunFiles) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """By setting: its values, ascending, with the figures there, over the variants that change this one number
    and nothing else. The run itself is among them where its config has a number there. Settings that only one
    variant changes are left out."""
    found = mapping(run.summary, "variants")
    by_key: dict[str, dict[float, dict[str, Any]]] = {}
    for name in found:
        key, _, text = "".join(changes(found[name])[:1]).partition("=")
        value = _number(text)
        if len(changes(found[name])) == 1 and value is not None:
            by_key.setdefault(key.strip(), {})[value] = mapping(found, name)
    result = {}
    for key, by_value in by_key.items():
        if len(by_value) < 2:
            continue
        here = own_value(run, key)
        if here is not None:
            by_value.setdefault(here, run.summary)
        result[key] = sorted(by_value.items(), key=lambda item: item[0])
    return result


def own_value(run: RunFiles, key: str) -> float | None:
    """The number that the run itself has under a dotted key of its config."""
    return finite(look_up(run.config, *key.split(".")))


def _number(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None


def _row(name: str, change: str, figures: Any, arms: list[str], pairs: list[str]) -> list[str]:
    seeds = look_up(figures, "seeds")
    # A long key may break after each of its parts.
    key, equals, value = change.partition("=")
    small = escape(key).replace(".", ".<wbr>") + escape(equals + value)
    rewards: list[Interval | None] = [interval(look_up(figures, "arms", arm, "held_out", "reward")) for arm in arms]
    accuracy = [interval(look_up(figures, "simulator", when, "classifier_accuracy")) for when in ("before", "after")]
    return [
        f"{escape(name)}<small>{small}</small>",
        str(len(seeds)) if isinstance(seeds, list) else "–",
        *(markup.cell(value) for value in rewards),
        *(markup.cell(interval(look_up(figures, "paired", pair)), sign=True) for pair in pairs),
        *(markup.cell(value) for value in accuracy),
    ]
