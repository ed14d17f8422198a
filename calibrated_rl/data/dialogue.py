"""What a dialogue is: pure data, without models, engines or actors.

A dialogue opens with a fixed greeting by the policy's side; then the other side (``USER``: a human, a
simulator or a scripted human) speaks, then the policy, in turns, until the task says that it has ended.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Side(StrEnum):
    """Who speaks. ``USER`` is the other side: a human, a simulator or a scripted human."""

    POLICY = "policy"
    USER = "user"

    @property
    def other(self) -> "Side":
        return Side.USER if self is Side.POLICY else Side.POLICY


class Split(StrEnum):
    """The four splits by dialogue (docs/architecture.md, contract 9)."""

    CALIBRATION = "calibration"
    """Fits simulators and the warm start; training scenarios come from here."""
    MONITOR = "monitor"
    """Early stopping and triggers."""
    TUNING = "tuning"
    """Hyperparameters."""
    HELD_OUT = "held_out"
    """For the reported metrics; nothing else sees it."""


class Source(StrEnum):
    """Where a turn's text came from."""

    GREETING = "greeting"
    LOG = "log"
    POLICY = "policy"
    SIMULATOR = "simulator"
    SCRIPTED = "scripted"
    HUMAN = "person"
    """A real human who types; stores of earlier runs have it under this value."""


class Finish(StrEnum):
    """How a generated turn ended."""

    STOP = "stop"
    """The side sampled its end-of-turn token."""
    LENGTH = "length"
    """The token limit was hit; the end-of-turn token was appended, masked and unscored."""
    DEGENERATE = "degenerate"
    """A control token other than end-of-turn was sampled (or one that the tokenizer does not know), or a guardrail
    rejected the turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One utterance. Text is for readers, rewards and logs: what is said, without reasoning. The ids, those of
    reasoning too, are in the dialogue's ``TokenSequence``."""

    side: Side
    text: str
    source: Source
    finish: Finish = Finish.STOP
    simulator_version: int | None = None
    """Version of the simulator's weights when the turn was spoken; None unless ``source`` is SIMULATOR."""
    flaw: str | None = None
    """Which guardrail objected (``empty``, ``repeat``, ``role_confusion``, ``control_token``,
    ``unfinished_reasoning``), if any did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is fixed before a dialogue starts."""

    id: str
    """Unique within the task; randomness that belongs to the user is keyed by it."""
    split: Split
    policy_instructions: str
    """System prompt of the policy's side."""
    user_instructions: str
    """System prompt of a simulator: goal and persona."""
    greeting: str
    goal: Mapping[str, Any] = field(default_factory=dict)
    """The other side's private goal, as JSON-able data."""
    persona: Mapping[str, Any] = field(default_factory=dict)
    population: str = "same"
    """``same`` as the users who were logged, or ``shifted`` (other traits)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Reward and success of a dialogue."""

    reward: float
    """Terminal reward, all costs included that ``turn_rewards`` does not have."""
    success: bool
    turn_rewards: tuple[float, ...] = ()
    """Optional reward after each policy turn (the greeting is none), beside the terminal one."""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """The terminal reward and all rewards of turns, undiscounted: what is learned from, compared and reported."""
        return self.reward + sum(self.turn_rewards)

    def by_turn(self, policy_turns: int) -> NDArray[np.float64]:
        """[T] what each of the policy's turns earned, the terminal reward with the last; they add up to the return."""
        assert len(self.turn_rewards) in (0, policy_turns), "rewards of turns that were not spoken"
        rewards = np.array(self.turn_rewards or np.zeros(policy_turns), np.float64)
        rewards[-1:] += self.reward
        return rewards


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """One side's view of a dialogue as the tokens its model saw and produced. All arrays have shape [T]."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    """True where this side's own sampled (or, in a log, spoken) tokens stand; only these carry loss."""
    logprobs: NDArray[np.float32]
    """Log-prob of the token under the engine that sampled it; NaN where nothing was sampled."""
    versions: NDArray[np.int32]
    """Version of the weights that sampled the token; -1 where nothing was sampled."""
    turns: NDArray[np.int32]
    """Index into ``Dialogue.turns`` of the turn the token belongs to; -1 for the opening scaffold."""

    def __post_init__(self) -> None:
        shapes = {a.shape for a in (self.ids, self.mask, self.logprobs, self.versions, self.turns)}
        assert len(shapes) == 1 and self.ids.ndim == 1, f"arrays of one sequence differ in shape: {shapes}"

    @classmethod
    def unsampled(cls, ids: NDArray[np.int32]) -> "TokenSequence":
        """``ids`` [T] as one turn that no engine sampled, all of which carries loss."""
        length = len(ids)
        return cls(
            ids=ids, mask=np.ones(length, np.bool_), logprobs=np.full(length, np.nan, np.float32),
            versions=np.full(length, -1, np.int32), turns=np.zeros(length, np.int32),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def oldest_version(self) -> int:
        """Version of the oldest weights that sampled any own token; -1 if none was sampled."""
        sampled = self.versions[self.mask]
        return int(sampled.min()) if len(sampled) else -1

    def with_mask(self, mask: NDArray[np.bool_]) -> "TokenSequence":
        return dataclasses.replace(self, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dialogue:
    """A whole conversation: logged, rolled out or evaluated; the unit of the replay store."""

    id: str
    task: str
    scenario: Scenario
    turns: tuple[Turn, ...]
    ending: str
    """Why it ended: the task's own word, ``max_turns``, or, where the policy broke it, ``policy_context`` (no space for
    another turn) or ``policy_degenerate`` (a control token). What another party broke is never stored
    (``rollout/failures.py``); old stores have ``context`` and ``degenerate``, which do not say whose fault it was."""
    outcome: Outcome | None
    kind: str
    """``log``, ``rollout`` or ``evaluation``."""
    arm: str = ""
    group_id: str = ""
    """Dialogues of a group share scenario, first user turn and simulator version."""
    group_size: int = 1
    update: int = -1
    """The update of the run during which it was collected; -1 outside training."""
    sampling_seed: int = 0
    simulator_version: int | None = None
    policy_tokens: TokenSequence | None = None
    user_tokens: TokenSequence | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)

    def tokens(self, side: Side) -> TokenSequence | None:
        return self.policy_tokens if side is Side.POLICY else self.user_tokens

    def user_turn_indices(self) -> list[int]:
        return [i for i, turn in enumerate(self.turns) if turn.side is Side.USER]
