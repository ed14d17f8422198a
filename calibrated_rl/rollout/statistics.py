"""Counts rollouts: dropped dialogues and whose fault they were, endings, and properties of turns."""

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Finish, Scenario, Side, Source, Turn
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.rollout.failures import WHOLE

MOST_BROKEN_KEPT = 5000
"""Broken tries of one kind of dialogue whose turns are kept until they are taken: nobody may take them."""

COUNTED = ("dropped", "tries", "flaws", "sampled", "cut")
"""Counters of ``RolloutStatistics`` that a run's results and checkpoints keep."""


@dataclass(frozen=True, slots=True)
class BrokenTry:
    """The turns of a try that a simulator broke: it is scored nowhere, but how it broke says how healthy the
    simulator is."""

    group_id: str
    scenario: Scenario
    turns: Sequence[Turn]
    first: int
    """Index of the try's own first turn; earlier ones are those of its group."""


@dataclass
class RolloutStatistics:
    """Counters of what happened during rollouts, failures included. Several event loops may count at once."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Dialogues (or single turns) dropped and retried, by reason."""
    tries: Counter[str] = field(default_factory=Counter)
    """Tries to run a dialogue or a single turn, by ``kind/party``: the kind of the dialogues (``rollout`` is what is
    learned from) and the party that broke the try, or ``whole``. An opening that breaks counts as a broken dialogue;
    one that does not is not counted."""
    groups_dropped: dict[str, str] = field(default_factory=dict)
    """Groups that were not delivered, with the reason."""
    flaws: Counter[str] = field(default_factory=Counter)
    """Turns that tripped a guardrail, by ``side/flaw``."""
    sampled: Counter[str] = field(default_factory=Counter)
    """Turns that a model sampled, by side."""
    cut: Counter[str] = field(default_factory=Counter)
    """Those of ``sampled`` that hit the token limit, by side."""
    endings: Counter[str] = field(default_factory=Counter)
    user_tokens: int = 0
    """Tokens that simulators sampled."""
    policy_tokens: int = 0
    _broken: dict[str, deque[BrokenTry]] = field(default_factory=dict, repr=False, compare=False)
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
        """Count a try as failed that was counted as whole already, since it could not be scored."""
        with self._lock:
            self.tries[f"{kind}/{WHOLE}"] -= 1
            self.fail(kind, failure)

    def succeed(self, kind: str) -> None:
        """Count a try that succeeded."""
        with self._lock:
            self.tries[f"{kind}/{WHOLE}"] += 1

    def remember_broken(self, kind: str, broken: BrokenTry) -> None:
        """Keep the turns of a try that a simulator broke, until ``take_broken``."""
        with self._lock:
            self._broken.setdefault(kind, deque(maxlen=MOST_BROKEN_KEPT)).append(broken)

    def take_broken(self, kind: str) -> list[BrokenTry]:
        """The broken tries of dialogues of ``kind`` since the last call."""
        with self._lock:
            return list(self._broken.pop(kind, ()))

    def tries_of(self, kind: str) -> Counter[str]:
        """Tries so far for dialogues of ``kind``, by party at fault or ``whole``."""
        with self._lock:
            entries = [(key.split("/", 1), count) for key, count in self.tries.items()]
        return Counter({party: count for (entry_kind, party), count in entries if entry_kind == kind})

    def drop_group(self, group_id: str, reason: str) -> None:
        """Count a group that will not be delivered."""
        with self._lock:
            self.groups_dropped[group_id] = reason

    def deliver_group(self, group_id: str) -> None:
        """The group is learned from after all: it was dropped when it ran once more after a restart, and the replay
        store had it complete from before."""
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
        """Count a complete group; the opening that all its dialogues share counts once."""
        with self._lock:
            for member, dialogue in enumerate(group):
                self.endings[dialogue.ending] += 1
                self.count_turns(dialogue.turns[2 if member else 0 :])
                if dialogue.user_tokens is not None:
                    self.user_tokens += int(dialogue.user_tokens.mask.sum())
                if dialogue.policy_tokens is not None:
                    self.policy_tokens += int(dialogue.policy_tokens.mask.sum())

    def counts(self) -> dict[str, dict[str, Any]]:
        """The counters that a run keeps, as plain data under the names of the fields."""
        with self._lock:
            return {name: dict(getattr(self, name)) for name in (*COUNTED, "groups_dropped")}

    def restore(self, counts: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue counting from the result of ``counts``."""
        with self._lock:
            for name in (*COUNTED, "groups_dropped"):
                getattr(self, name).update(counts.get(name, {}))


def cut_shares(groups: Sequence[Sequence[Dialogue]]) -> dict[str, float]:
    """Share of the models' turns that hit the token limit, by side: ``cut_share_policy``, ``cut_share_user``.
    The opening that a group shares counts once; a side without sampled turns (humans, logs) has none."""
    turns = [turn for g in groups for member, d in enumerate(g) for turn in d.turns[2 if member else 0 :]]
    shares = {}
    for side, source in ((Side.POLICY, Source.POLICY), (Side.USER, Source.SIMULATOR)):
        hit_limit = [turn.finish is Finish.LENGTH for turn in turns if turn.source is source]
        if hit_limit:
            shares[f"cut_share_{side}"] = sum(hit_limit) / len(hit_limit)
    return shares
