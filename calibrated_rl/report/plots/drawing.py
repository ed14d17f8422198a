"""How every plot of the report looks, and how it becomes a part of the page.

Plots are SVG with text as outlines, embedded as data: the page needs no other file, no font and no script,
and identifiers of one plot cannot meet those of another. The same run gives the same bytes.
"""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#2B2B2B"

_RC = {
    "svg.fonttype": "path",
    "svg.hashsalt": "calibrated-rl",
    # Names of endings and metrics come from tasks: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9A9A96",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#ECECE8",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#6A6A66",
    "ytick.color": "#6A6A66",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Within it, figures are created and saved in the report's style."""
    with rc_context(_RC):
        yield


def figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches; no window and no global state is involved."""
    fig = Figure(figsize=(width, height), layout="constrained")
    # Space between rows, so that a panel's title does not look like a label of the panel above.
    fig.set_layout_engine("constrained", hspace=0.09)
    return fig


def zero_line(axes: Axes) -> None:
    axes.axvline(0, color="#8A8A86", linewidth=1, zorder=1)


def horizontal_only(axes: Axes) -> None:
    """For plots whose rows are categories: no grid lines and no ticks between rows."""
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def vertical_only(axes: Axes) -> None:
    """For bars over categories."""
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)


def data_uri(fig: Figure) -> str:
    """The figure as a ``data:`` address of an SVG image."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
