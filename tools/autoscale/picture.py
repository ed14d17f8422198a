"""Nodes and replicas over time."""

from pathlib import Path
from typing import Any

COLORS = {"rollout": "#0072B2", "learner": "#D55E00"}
MARKS = {
    "demand": ("demand", "#666666"), "spot node killed": ("spot node killed", "#a12622"),
    "capacity again": ("capacity again", "#009E73"), "job ended": ("job ended", "#666666"),
}  # fmt: skip


def draw(result: dict[str, Any], file: Path) -> None:
    """``result``: that of ``job.figures``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples = result["samples"]
    seconds = [one["seconds"] for one in samples]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(9, 5), sharex=True, height_ratios=(3, 2))
    for kind in sorted({kind for one in samples for kind in one["nodes"]}):
        counts = [one["nodes"].get(kind, 0) for one in samples]
        above.step(seconds, counts, where="post", color=COLORS.get(kind), label=f"nodes, part: {kind}", linewidth=2)
    above.step(
        seconds, [one["replicas"] for one in samples], where="post", color="black", linestyle=":", label="replicas"
    )
    for axis in (above, below):
        for event in result["events"]:
            if event["event"] in MARKS:
                axis.axvline(event["seconds"], color=MARKS[event["event"]][1], linewidth=0.8)
    top = above.get_ylim()[1]
    for event in result["events"]:
        if event["event"] in MARKS:
            text, color = MARKS[event["event"]]
            above.text(event["seconds"], top, f" {text}", rotation=90, va="top", fontsize=7, color=color)
    above.set_ylabel("alive")
    above.legend(loc="upper left", fontsize=8)
    updates = [event["seconds"] for event in result["events"] if event["event"] == "update"]
    below.step(updates, range(1, len(updates) + 1), where="post", color="black")
    below.set_ylabel("updates done")
    below.set_xlabel("seconds since the head was started")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
