"""Dialogues made on the spot for tests of estimators: two kinds of users that talk to the same policy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.shift.base import MatchedReplies

QUESTIONS = ("Which day do you want?", "What time suits you?", "How many people?")
WORDS = ("monday", "friday", "seven", "eight", "two", "four", "please", "well", "maybe", "no", "yes", "thanks")
Speak = Callable[[np.random.Generator], str]


def policy(text: str) -> Turn:
    return Turn(side=Side.POLICY, text=text, source=Source.POLICY)


def user(text: str) -> Turn:
    return Turn(side=Side.USER, text=text, source=Source.HUMAN)


def dialogue(
    name: str, *turns: Turn, goal: dict[str, Any] | None = None, acts: Sequence[Sequence[str]] = ()
) -> Dialogue:
    """One dialogue of the person ``name``."""
    scenario = Scenario(
        id=name, split=Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="hello", goal=goal or {}
    )
    return Dialogue(
        id=f"log-{name}", task="t", scenario=scenario, turns=turns, ending="log_end", outcome=None, kind="log",
        annotations={"acts": [list(a) for a in acts]} if acts else {},
    )  # fmt: skip


def terse(rng: np.random.Generator) -> str:
    """One to four words in lower case."""
    return " ".join(rng.choice(WORDS, size=int(rng.integers(1, 5))))


def wordy(rng: np.random.Generator) -> str:
    """Sentences as an untuned assistant writes them."""
    return f"Certainly! I would be happy with {rng.choice(WORDS)}. Thank you so much for your kind help!"


def act_of(text: str) -> list[str]:
    return ["thank"] if "hank" in text else ["deny"] if "no" in text.split() else ["inform"]


def population(speak: Speak, count: int, seed: int, prefix: str = "p") -> list[Dialogue]:
    """``count`` people with three to five turns each, and the acts of their turns."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        turns = [policy("Hello!")]
        for _ in range(int(rng.integers(3, 6))):
            turns += [user(speak(rng)), policy(str(rng.choice(QUESTIONS)))]
        acts = [act_of(turn.text) if turn.side is Side.USER else ["request"] for turn in turns]
        made.append(dialogue(f"{prefix}{i}", *turns, acts=acts))
    return made


def paired(human: Speak, simulator: Speak, count: int, seed: int = 0, turns: int = 3) -> MatchedReplies:
    """Replies of both to the same histories of ``count`` dialogues."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        history = [policy("Hello!")]
        for turn in range(1, turns + 1):
            said = human(rng)
            rows.append((tuple(history), said, simulator(rng), turn, f"d{i}"))
            history += [user(said), policy(str(rng.choice(QUESTIONS)))]
    histories, people, simulated, index, names = map(list, zip(*rows, strict=True))
    return MatchedReplies(histories=histories, human=people, simulator=simulated, turn=index, dialogue=names)
