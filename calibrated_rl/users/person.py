"""A real person as the other side of a dialogue, who answers through a function such as a terminal's prompt."""

from collections.abc import Callable, Sequence

from calibrated_rl.data.dialogue import Side, Source, Turn

STOPPED = "stopped"
"""How a dialogue ended that the person did not go on with."""


class Person:
    """Speaks for somebody who sits in front of it and sees the dialogue."""

    def __init__(self, ask: Callable[[], str | None]) -> None:
        """
        Args:
            ask: waits for what the person says; None when the person stops. The event loop waits too, so this is
                for one dialogue at a time.
        """
        self._ask = ask
        self.stopped = False

    def hear(self, turn: Turn) -> None:
        """Nothing to do: the person reads along."""

    async def say(self, turns: Sequence[Turn]) -> Turn | None:
        text = self._ask()
        if text is None:
            self.stopped = True
            return None
        return Turn(side=Side.USER, text=text, source=Source.PERSON)
