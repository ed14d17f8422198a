"""What sections hand to their templates: every section's view names its template, and a plot is an address."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from matplotlib.figure import Figure

from calibrated_rl.report.plots.drawing import data_uri
from calibrated_rl.report.values import Interval

PIXELS_AN_INCH = 118
CALIBRATION = ("before", "after")
"""When the simulator is measured."""


class View(Protocol):
    """What one section shows."""

    template: ClassVar[str]
    """File in ``templates/``, which finds this object as ``view``."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture on the page."""

    address: str
    """The whole picture, as a ``data:`` address."""
    meaning: str
    """Read to those who cannot see it."""
    width: int
    """Pixels."""

    @classmethod
    def of(cls, fig: Figure, meaning: str) -> "Plot":
        """The picture of a figure. Called within ``plot_style``."""
        return cls(data_uri(fig), meaning, round(fig.get_size_inches()[0] * PIXELS_AN_INCH))


@dataclass(frozen=True, slots=True)
class Cell:
    """A metric in a table, and how it is written."""

    value: Interval | None
    digits: int = 2
    sign: bool = False
    """Whether a positive metric gets a plus sign."""
