"""What is counted while dialogues are run: what was dropped and through whose fault, and what turns were like."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Finish, Side, Source, Turn
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.rollout.failures import WHOLE

COUNTED = ("dropped", "tries", "flaws", "sampled", "cut")
"""Counters of ``RolloutStatistics`` that a run's results and checkpoints keep."""


@dataclass
class RolloutStatistics:
    """What happened while collecting; nothing here is silent. Several event loops may count at once."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Dialogues (or single turns) dropped and run again, by reason."""
    tries: Counter[str] = field(default_factory=Counter)
    """Tries to run a dialogue or a single turn, by ``kind/party``: the kind of the dialogues (``rollout`` is what is
    learned from) and whose fault it was that nothing came of it, or ``whole``. An opening that breaks is a dialogue
    that broke; one that does not is none yet."""
    groups_dropped: dict[str, str] = field(default_factory=dict)
    """Groups that were not delivered, with the reason."""
    flaws: Counter[str] = field(default_factory=Counter)
    """Turns that tripped a guardrail, by ``side/flaw``."""
    sampled: Counter[str] = field(default_factory=Counter)
    """Turns that a model said, by side."""
    cut: Counter[str] = field(default_factory=Counter)
    """Those of ``sampled`` that hit the token limit, by side."""
    endings: Counter[str] = field(default_factory=Counter)
    user_tokens: int = 0
    """Tokens that simulators sampled."""
    policy_tokens: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    def drop(self, reason: str) -> None:
        """Count a dialogue that was dropped."""
        with self._lock:
            self.dropped[reason] += 1

    def fail(self, kind: str, failure: RolloutFailure) -> None:
        """Count a try that failed."""
        with self._lock:
            self.dropped[failure.reason] += 1
            self.tries[f"{kind}/{failure.party}"] += 1

    def fail_after_all(self, kind: str, failure: RolloutFailure) -> None:
        """Count a try as failed of which something had come already, and was counted: it could not be scored."""
        with self._lock:
            self.tries[f"{kind}/{WHOLE}"] -= 1
            self.fail(kind, failure)

    def succeed(self, kind: str) -> None:
        """Count a try of which something came."""
        with self._lock:
            self.tries[f"{kind}/{WHOLE}"] += 1

    def tries_of(self, kind: str) -> Counter[str]:
        """Tries so far for dialogues of ``kind``, by party at fault or ``whole``."""
        with self._lock:
            own = [(key.split("/", 1), count) for key, count in self.tries.items()]
        return Counter({party: count for (of, party), count in own if of == kind})

    def drop_group(self, group_id: str, reason: str) -> None:
        """Count a group that will not be delivered."""
        with self._lock:
            self.groups_dropped[group_id] = reason

    def deliver_group(self, group_id: str) -> None:
        """The group is learned from after all: it was dropped when it was run once more after a restart, and the
        replay store had it whole from before."""
        with self._lock:
            self.groups_dropped.pop(group_id, None)

    def count_turns(self, turns: Sequence[Turn]) -> None:
        with self._lock:
            for turn in turns:
                if turn.flaw:
                    self.flaws[f"{turn.side.value}/{turn.flaw}"] += 1
                if turn.source in (Source.POLICY, Source.SIMULATOR):
                    self.sampled[turn.side.value] += 1
                    self.cut[turn.side.value] += turn.finish is Finish.LENGTH

    def count(self, group: Sequence[Dialogue]) -> None:
        """Count a complete group; the opening that all its dialogues share was said once."""
        with self._lock:
            for member, dialogue in enumerate(group):
                self.endings[dialogue.ending] += 1
                self.count_turns(dialogue.turns[2 if member else 0 :])
                if dialogue.user_tokens is not None:
                    self.user_tokens += int(dialogue.user_tokens.mask.sum())
                if dialogue.policy_tokens is not None:
                    self.policy_tokens += int(dialogue.policy_tokens.mask.sum())

    def found(self) -> dict[str, dict[str, Any]]:
        """What a run keeps of it, as plain data under the names of the fields."""
        with self._lock:
            return {name: dict(getattr(self, name)) for name in (*COUNTED, "groups_dropped")}

    def restore(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on counting from what ``found`` has given."""
        with self._lock:
            for name in (*COUNTED, "groups_dropped"):
                getattr(self, name).update(found.get(name, {}))


def cut_shares(groups: Sequence[Sequence[Dialogue]]) -> dict[str, float]:
    """Share of the turns that models said which hit the token limit, by side: ``cut_share_policy``, ``cut_share_user``.
    The opening that a group shares counts once; a side without sampled turns (people, logs) has none."""
    turns = [turn for g in groups for member, d in enumerate(g) for turn in d.turns[2 if member else 0 :]]
    shares = {}
    for side, source in ((Side.POLICY, Source.POLICY), (Side.USER, Source.SIMULATOR)):
        cut = [turn.finish is Finish.LENGTH for turn in turns if turn.source is source]
        if cut:
            shares[f"cut_share_{side}"] = sum(cut) / len(cut)
    return shares
