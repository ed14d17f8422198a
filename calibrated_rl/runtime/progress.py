"""How far a job is: in a terminal, one bar at a time, below the lines of the log (``console.py``)."""

import itertools
import logging
import sys
from collections.abc import Callable

from tqdm import tqdm

logger = logging.getLogger(__name__)

Step = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


class Progress:
    """Bars go to the standard error, where that is a terminal and whoever looks at it wants to know what a run does."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._step: Step = lambda done, total: None
        self._shows_bars = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)

    def __call__(self, name: str) -> Step:
        """A bar called ``name``; it replaces the one before."""
        self.close()
        if not self._shows_bars:
            return lambda done, total: None
        bar: tqdm[None] = tqdm(desc=name, leave=False, dynamic_ncols=True)
        self._bar = bar

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return step

    def show(self, name: str, done: int, total: int) -> None:
        """Bring the bar called ``name`` to ``done``; another one that was shown meanwhile goes."""
        if self._bar is None or self._bar.desc != name:
            self._step = self(name)
        self._step(done, total)

    def ticks(self, name: str, total: int) -> Callable[[], None]:
        """A bar called ``name`` that goes on by one at each call."""
        step, done = self(name), itertools.count(1)
        return lambda: step(next(done), total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
