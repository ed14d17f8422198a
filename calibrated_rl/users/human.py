"""A real human as the other side of a dialogue, who answers through a function such as a terminal's prompt."""

from collections.abc import Callable, Sequence

from calibrated_rl.data.dialogue import Side, Source, Turn

STOPPED = "stopped"
"""Ending of a dialogue that the human did not continue."""


class HumanUser:
    """A human who sees the dialogue and types replies."""

    def __init__(self, ask: Callable[[], str | None]) -> None:
        """
        Args:
            ask: waits for what the human says; None when the human stops. The event loop waits too, so this is
                for one dialogue at a time.
        """
        self._ask = ask
        self.stopped = False

    def hear(self, turn: Turn) -> None:
        """Nothing to do: the human reads along."""

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        text = self._ask()
        if text is None:
            self.stopped = True
            return None
        return Turn(side=Side.USER, text=text, source=Source.HUMAN)
