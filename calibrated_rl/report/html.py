"""``report.html``: one self-contained page about a run, with plots, without scripts or outside files."""

from html import escape
from pathlib import Path

from calibrated_rl.report import (
    sections,
    sections_populations,
    sections_rollouts,
    sections_shift,
    sections_simulator,
    sections_variants,
)
from calibrated_rl.report.arms import arms_of
from calibrated_rl.report.plots.drawing import plot_style
from calibrated_rl.report.run_files import read_run

SECTIONS = (
    sections.head,
    sections.arms_table,
    sections.held_out,
    sections.paired,
    sections_variants.variants,
    sections.spent,
    sections.learning,
    sections_rollouts.without_signal,
    sections_simulator.simulator,
    sections_populations.populations,
    sections_simulator.shift,
    sections_shift.shift_in_training,
    sections.endings,
    sections.dialogues,
    sections.optimisation,
    sections_rollouts.guardrails,
    sections.versions,
)


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from the run's ``summary.json``, ``metrics.parquet``, ``samples.json`` and
    ``config.yaml``.

    Any of them may be missing, wholly or in part: the page then says so in that place.

    Raises:
        UserError: ``run`` is no folder, or one of its files cannot be read.
    """
    files = read_run(run)
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    with plot_style(), arms_of(files.summary):
        body = "\n".join(part for section in SECTIONS if (part := section(files)))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(files.name)}</title>\n<style>\n{css}</style></head>\n<body><main>\n{body}\n"
        "</main></body></html>\n"
    )
    target = run / "report.html"
    target.write_text(page, encoding="utf-8")
    return target
