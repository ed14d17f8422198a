"""The section that sets dialogues of the simulator beside dialogues of people, before and after calibration."""

from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.plots import populations as plots_populations
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, finite, interval, look_up, mapping

CALIBRATION = ("before", "after")
LIKENESS = "likeness_"


def populations(run: RunFiles) -> str:
    """Likeness bars, the decision to end, and every figure with its band and reading; nothing where none was taken."""
    found = mapping(run.summary, "simulator")
    figures = {when: _figures(found, when) for when in CALIBRATION}
    names = [name for name in figures["before"] if name in figures["after"]]
    curves = {when: _curve(look_up(found, when, "ending_curve")) for when in CALIBRATION}
    if not names and not any(curves.values()):
        return ""
    parts = [
        markup.note(
            "Whole dialogues of the simulator with the starting policy, and those of people. Grey: where the same "
            "procedure puts two random halves of the people. What each figure means: docs/shift.md."
        )
    ]
    bars = {
        name.removeprefix(LIKENESS): ({when: value for when in CALIBRATION if (value := _value(figures, when, name))},
                                      _band(figures["before"][name]))
        for name in names if name.startswith(LIKENESS)
    }  # fmt: skip
    if bars:
        parts.append(markup.note("Human-likeness by dimension, 0 to 100: 100 is as like people as other people are."))
        parts.append(markup.image(plots_populations.likeness(bars), "human-likeness before and after calibration"))
    if any(curves.values()):
        parts.append(markup.note(_ending_words(found)))
        shown = {when: curve for when, curve in curves.items() if curve}
        parts.append(markup.image(plots_populations.ending(shown), "calibration of the decision to end"))
    if names:
        parts += [_verdict(figures, names), _others(found), _table(figures, names)]
    refused = mapping(found, "after", "populations", "refused")
    parts += [markup.note(f"Not measured: {name}: {why}") for name, why in refused.items()]
    return markup.section("The simulator's dialogues against people's", *parts)


def _figures(found: dict[str, Any], when: str) -> dict[str, dict[str, Any]]:
    raw = mapping(found, when, "populations", "figures")
    return {name: figure for name, figure in raw.items() if isinstance(figure, dict) and interval(figure) is not None}


def _value(figures: dict[str, dict[str, dict[str, Any]]], when: str, name: str) -> Interval | None:
    return interval(figures[when].get(name))


def _band(figure: dict[str, Any]) -> tuple[float, float] | None:
    band = figure.get("null_band")
    limits = [finite(limit) for limit in band] if isinstance(band, list) and len(band) == 2 else []
    return (limits[0], limits[1]) if len(limits) == 2 and None not in limits else None  # type: ignore[return-value]


def distance(figure: dict[str, Any]) -> float:
    """How far a figure is from where two halves of people are: 0 within their band or on its near side."""
    band, value = _band(figure), interval(figure)
    assert value is not None
    low, high = band if band is not None else (0.0, 0.0)
    above = value.mean - high if figure.get("far") != "below" else 0.0
    below = low - value.mean if figure.get("far") != "above" else 0.0
    return max(above, below, 0.0)


def _verdict(figures: dict[str, dict[str, dict[str, Any]]], names: list[str]) -> str:
    banded = [name for name in names if _band(figures["before"][name]) is not None]
    pairs = {name: (distance(figures["before"][name]), distance(figures["after"][name])) for name in banded}
    further = [name for name, (before, after) in pairs.items() if after > before]
    nearer = sum(after < before for before, after in pairs.values())
    words = f"After calibration {nearer} of {len(pairs)} figures are nearer to people's band"
    words += f"; further from it: {', '.join(further)}." if further else "; none is further from it."
    return markup.note(words + " The others were in it before and after, or are unchanged.")


def _others(found: dict[str, Any]) -> str:
    """The same of the figures that other sections show, which have no band for both."""
    titles = {"classifier_accuracy": "classifier on words", "classifier_accuracy_acts": "classifier on acts",
              "nll_per_byte": "likelihood of a byte"}  # fmt: skip
    nearer: dict[bool, list[str]] = {True: [], False: []}
    for name, title in titles.items():
        before, after = (interval(look_up(found, when, name)) for when in CALIBRATION)
        if before is not None and after is not None:
            nearer[after.mean < before.mean].append(title)
    words = [f"{'nearer' if better else 'not nearer'}: {', '.join(own)}" for better, own in nearer.items() if own]
    return markup.note(f"After calibration {'; '.join(words)}.") if words else ""


def _table(figures: dict[str, dict[str, dict[str, Any]]], names: list[str]) -> str:
    rows = []
    for name in names:
        before, after = (figures[when][name] for when in CALIBRATION)
        band = _band(before)
        rows.append([
            markup.plain(name), markup.cell(interval(before)), markup.cell(interval(after)),
            "–" if band is None else f"{band[0]:.2f} … {band[1]:.2f}".replace("-", "−"),
            markup.plain(str(before.get("reading", "–"))), markup.plain(str(after.get("reading", "–"))),
        ])  # fmt: skip
    return markup.table(["figure", "before", "after", "two halves of people", "before is", "after is"], rows)


def _curve(raw: Any) -> list[tuple[float, float, int]]:
    points = []
    for entry in raw if isinstance(raw, list) else []:
        values = [finite(look_up(entry, key)) for key in ("probability", "outcome", "count")]
        if None not in values:
            points.append((values[0], values[1], int(values[2])))  # type: ignore[arg-type]
    return points  # type: ignore[return-value]


def _ending_words(found: dict[str, Any]) -> str:
    words = (
        "The decision to end: probability that the simulator gives to ending the dialogue with a turn (the share of "
        "its draws that do), and how often people ended it there. On the diagonal is right; but shares of few draws "
        "scatter, which makes the curve of a right simulator, too, flatter than that."
    )
    titles = {"ending_f1": "F1", "ending_ece": "calibration error", "ending_bias": "leaves too often by"}
    for name, title in titles.items():
        values = [interval(look_up(found, when, name)) for when in CALIBRATION]
        if all(value is not None for value in values):
            words += f" {title}: {' → '.join(f'{value.mean:.2f}' for value in values if value)}."
    return words
