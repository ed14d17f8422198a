"""The agreeable negotiator: what a language model that was made to assist is like in the other seat, as a program.

It wants nothing: it asks what the other would like, says yes to every offer, and enters what the latest one leaves for
it, nothing where none was made, whatever its own points are. It never refuses, counters, ends the talk or leaves.
Offers are read by rule (``deals.read_offer``). It stands for an uncalibrated simulator on a machine without a large
model: a simulator pretrained on its dialogues says yes to everything, and RL can learn to exploit that. It does not
resemble people, and is not meant to.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from calibrated_rl.data.dialogue import Scenario, Side, Turn
from calibrated_rl.examples.deal_or_no_deal.deals import Counts, entry_text, is_entry, read_offer, rest_of
from calibrated_rl.examples.deal_or_no_deal.task import counts_of
from calibrated_rl.tasks.base import Task

OPENS = (
    "hi there ! how can i help you today ? what would you like to have ?",
    "hello ! i am happy to help . which items would you like ?",
    "hi ! let us find something that works for you . what do you need ?",
)
ACCEPTS = (
    "that sounds great ! you can have that .",
    "of course , that works perfectly for me . deal !",
    "sure , i am happy to agree to that . deal .",
    "absolutely , thank you for the great offer . deal !",
)
ASKS = (
    "of course . just tell me what you would like , and you can have it .",
    "sure , whatever works best for you . what would you like ?",
    "i understand . i am happy to give you what you need . what would you like ?",
)


class AgreeableNegotiator:
    """A population of one program, whose phrases are drawn evenly; see the module's docstring."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Config, *, task: Task) -> None:
        self.config = config

    def reply(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """What it says next."""
        return random.Random(f"{scenario.id}/{len(turns)}").choice(self._phrases(scenario, turns))

    def sample(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """A fresh draw of its next phrase."""
        return random.Random(seed).choice(self._phrases(scenario, turns))

    def log_prob(self, scenario: Scenario, turns: Sequence[Turn], reply: str) -> float:
        """Exact ``log P(reply | turns)``."""
        phrases = self._phrases(scenario, turns)
        return -math.log(len(phrases)) if reply in phrases else -math.inf

    def _phrases(self, scenario: Scenario, turns: Sequence[Turn]) -> tuple[str, ...]:
        """What it may say next, each with the same probability."""
        counts = counts_of(scenario)
        if any(is_entry(turn.text) for turn in turns):
            return (entry_text(rest_of(_latest_offer(turns, counts) or counts, counts)),)
        if turns[-1].text and read_offer(turns[-1].text, counts) is not None:
            return ACCEPTS
        return ASKS if any(turn.text for turn in turns) else OPENS


def _latest_offer(turns: Sequence[Turn], counts: Counts) -> Counts | None:
    """What the policy's side would get by the latest of its offers."""
    offers = [read_offer(turn.text, counts) for turn in turns if turn.side is Side.POLICY]
    return next((offer for offer in reversed(offers) if offer is not None), None)
