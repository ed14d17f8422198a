"""Going on after the end: the user has closed the conversation and speaks on, though nobody asked.

A conversation is closed by a farewell, by "that's all", or by giving up (``closings.py``, some languages); a question
of the policy opens it again. Formal turns are no going on: the one that ends the dialogue for the task, a sealed one.
(After its task's own ending a dialogue of a run has no turns.)
"""

from calibrated_rl.data.dialogue import Side
from calibrated_rl.health.base import NothingToSet, UserTurn, is_secret
from calibrated_rl.health.closings import closes
from calibrated_rl.health.text import asks


class AfterEnd(NothingToSet):
    """Judges every turn."""

    name = "after_end"

    def detect(self, turn: UserTurn) -> bool | None:
        closed = False
        for earlier in turn.history:
            if earlier.side is Side.USER:
                closed = closed or closes(earlier.text)
            elif asks(earlier.text):
                closed = False
        if not closed or is_secret(turn.task, turn.text):
            return False
        return turn.task is None or turn.task.ending(turn.scenario, turn.turns) is None
