"""``report.html``: one self-contained page about a run, with plots, without scripts or outside files.

Sections prepare what they show (``sections/``), templates write it (``templates/``).
"""

from collections.abc import Callable
from pathlib import Path

from calibrated_rl.report.arms import arms_of
from calibrated_rl.report.plots.drawing import plot_style
from calibrated_rl.report.rendering import render
from calibrated_rl.report.run_files import RunFiles, read_run
from calibrated_rl.report.sections import (
    alignments,
    arms_table,
    dialogues,
    endings,
    guardrails,
    head,
    health,
    held_out,
    learning,
    optimisation,
    paired,
    populations,
    proxies,
    shift_by_turn,
    shift_in_training,
    simulator,
    spent,
    variants,
    versions,
    without_signal,
)
from calibrated_rl.report.views import View

SECTIONS: tuple[Callable[[RunFiles], View | None], ...] = (
    head.view,
    arms_table.view,
    held_out.view,
    proxies.view,
    paired.view,
    variants.view,
    spent.view,
    learning.view,
    without_signal.view,
    simulator.view,
    health.view,
    populations.view,
    shift_by_turn.view,
    shift_in_training.view,
    alignments.view,
    endings.view,
    dialogues.view,
    optimisation.view,
    guardrails.view,
    versions.view,
)
"""In the order of the page."""


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from the run's ``summary.json``, ``metrics.parquet``, ``samples.json`` and
    ``config.yaml``.

    Any of them may be missing, wholly or in part: the page then says so in that place.

    Raises:
        UserError: ``run`` is no folder, or one of its files cannot be read.
    """
    files = read_run(run)
    with plot_style(), arms_of(files.summary):
        views = [section(files) for section in SECTIONS]
    target = run / "report.html"
    page = render("page.jinja", name=files.name, views=[view for view in views if view is not None])
    target.write_text(page, encoding="utf-8")
    return target
