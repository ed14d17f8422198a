"""The users of the front desk: a population of programs whose replies have exact probabilities.

A user is one of eight types (talkative or terse, patient or impatient, tidy or sloppy). Given the history
``h`` and a type ``z``, the reply is drawn from an enumerated distribution over canonical word tuples ``w``, then
each word that has a sloppy spelling is typed sloppily with the type's probability. So

    P(text | h) = sum_z P(z | h) P(w | h, z) prod_i P(typed_i | w_i, z),

where ``w`` is the one interpretation of the text and ``P(z | h)`` is Bayes' rule on the user's own past turns in ``h``.

What a user does: it opens with ``table`` and at most one value; it answers what was asked, of two questions at once
mostly both, at times with one value more; now and then it says a wrong value and does not know it; once its change of
mind is due it utters it (``sorry make it six``) or, if it never told the slot, speaks of the new value; a read-back
is confirmed (``yes``) or, if wrong and noticed, one wrong value is corrected (``no six``); what it does not understand
it questions (``what``). At each turn after the first it may leave (``forget it bye``); the hazard grows with every
policy turn beyond the second, and with every *bad* one so far: one not understood, one that asks for nothing but what
was told or is not needed, or one that reads back the same values again.

``cooperativeness`` interpolates every parameter linearly to the user that assistants like to simulate: it tells
everything in its first turn, rightly, confirms everything, never leaves, mistypes or changes its mind.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np

from calibrated_rl.data.dialogue import Scenario, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.replies import (
    History,
    Manner,
    as_history,
    read_history,
    reply_distribution,
    typing_probability,
)
from calibrated_rl.examples.front_desk.task import POPULATIONS, keyed_random
from calibrated_rl.examples.front_desk.words import SLOPPY, TIDY, Goal, goal_of
from calibrated_rl.settings.fields import NotNegative, Range, Seed, Share, check_settings
from calibrated_rl.tasks.base import Task


@dataclass(frozen=True, slots=True)
class HumanTraits:
    """One type of user."""

    name: str
    manner: Manner
    typo: float
    """Probability of the sloppy spelling, for each word that has one."""


class FrontDeskHuman:
    """A population of users; see the module's docstring. ``scenario.population`` picks the shares of types.

    Raises:
        UserError: a share or a probability outside 0..1, or hazards that are negative.
    """

    @dataclass(frozen=True)
    class Config:
        seed: Seed = 0
        """Population seed: another seed, other individuals."""
        cooperativeness: Share = 0.0
        """0: the human-like population. 1: the fully cooperative population. Every parameter is interpolated
        linearly."""
        talkative_share: Share = 0.5
        """Share of talkative users; the three shares are independent of each other."""
        patient_share: Share = 0.6
        """Share of patient users."""
        tidy_share: Share = 0.5
        """Share of users who type tidily."""
        shifted_talkative_share: Share = 0.1
        """The same in the ``shifted`` population: terser,"""
        shifted_patient_share: Share = 0.2
        """less patient,"""
        shifted_tidy_share: Share = 0.1
        """sloppier."""
        tell_one_talkative: Share = 0.6
        """Probability of one slot in the first turn, and of one slot more in an answer: talkative."""
        tell_one_terse: Share = 0.2
        """The same: terse."""
        please_talkative: Share = 0.5
        """Probability of a polite word: talkative."""
        please_terse: Share = 0.1
        """The same: terse."""
        please_cooperative: Share = 0.5
        """The same: fully cooperative."""
        leave_base: Share = 0.01
        """Hazard of leaving at each turn after the first."""
        leave_bad: Share = 0.3
        """Added to it for each bad policy turn so far."""
        leave_late: Share = 0.3
        """Added to it for each policy turn beyond ``free_turns``."""
        free_turns: NotNegative = 2
        """Policy turns that cost no patience."""
        haste_patient: Annotated[float, Range(at_least=0)] = 0.5
        """Factor on these hazards: patient."""
        haste_impatient: Annotated[float, Range(at_least=0)] = 1.75
        """The same: impatient."""
        typo_tidy: Share = 0.03
        """Probability of a sloppy spelling: tidy."""
        typo_sloppy: Share = 0.35
        """The same: sloppy."""
        grumble: Share = 0.5
        """Probability of a grumble when asked again."""
        both_talkative: Share = 0.95
        """Probability of answering both of two questions at once: talkative."""
        both_terse: Share = 0.75
        """The same: terse."""
        misspeak: Share = 0.03
        """Probability of saying one wrong value in a turn that tells values."""
        notice: Share = 0.95
        """Probability of noticing a wrong read-back."""
        utter_change: Share = 0.85
        """Probability of uttering a change of mind that is due, at each turn until it is said."""

    def __init__(self, config: Config | None = None, task: Task | None = None) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "FrontDeskHuman")
        combinations = list(product((True, False), repeat=3))
        self.types: tuple[HumanTraits, ...] = tuple(self._traits(*flags) for flags in combinations)
        self.priors: dict[str, tuple[float, ...]] = {}
        for population in POPULATIONS:
            prefix = "" if population == "same" else f"{population}_"
            shares = [getattr(config, f"{prefix}{trait}_share") for trait in ("talkative", "patient", "tidy")]
            self.priors[population] = tuple(
                math.prod(s if flag else 1.0 - s for s, flag in zip(shares, flags, strict=True))
                for flags in combinations
            )

    def _traits(self, talkative: bool, patient: bool, tidy: bool) -> HumanTraits:
        c = self.config
        human, coop = 1.0 - c.cooperativeness, c.cooperativeness
        haste = c.haste_patient if patient else c.haste_impatient
        please = c.please_talkative if talkative else c.please_terse
        manner = Manner(
            tell_all=coop,
            tell_one=human * (c.tell_one_talkative if talkative else c.tell_one_terse),
            please=human * please + coop * c.please_cooperative,
            leave_base=human * haste * c.leave_base,
            leave_bad=human * haste * c.leave_bad,
            leave_late=human * haste * c.leave_late,
            free_turns=c.free_turns,
            answer_both=human * (c.both_talkative if talkative else c.both_terse) + coop,
            misspeak=human * c.misspeak,
            grumble=human * c.grumble,
            notice=human * c.notice,
            utter_change=human * c.utter_change,
        )
        words = ("talkative" if talkative else "terse", "patient" if patient else "impatient")
        return HumanTraits(
            name=" ".join((*words, "tidy" if tidy else "sloppy")),
            manner=manner,
            typo=human * (c.typo_tidy if tidy else c.typo_sloppy),
        )

    def traits(self, scenario: Scenario) -> HumanTraits:
        """The type of the user of ``scenario``."""
        rng = keyed_random("front_desk_traits", self.config.seed, scenario.id)
        return self.types[_pick(self._prior(scenario), rng.random())]

    def _prior(self, scenario: Scenario) -> tuple[float, ...]:
        if scenario.population not in self.priors:
            raise UserError(f"FrontDeskHuman: unknown population '{scenario.population}'")
        return self.priors[scenario.population]

    def reply(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """What the user of ``scenario`` says next, keyed by seed, scenario id and turn index alone."""
        rng = keyed_random("front_desk_reply", self.config.seed, scenario.id, len(turns))
        return self._speak(scenario, turns, self.traits(scenario), rng)

    def sample(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> str:
        """A fresh draw from the distribution that ``log_prob`` describes."""
        rng = keyed_random("front_desk_sample", self.config.seed, scenario.id, len(turns), seed)
        traits = self.types[_pick(self.posterior(scenario, turns), rng.random())]
        return self._speak(scenario, turns, traits, rng)

    def _speak(self, scenario: Scenario, turns: Sequence[Turn], traits: HumanTraits, rng: np.random.Generator) -> str:
        goal = goal_of(scenario)
        replies = reply_distribution(goal, read_history(goal, as_history(turns)), traits.manner)
        words = list(replies)[_pick(tuple(replies.values()), rng.random())]
        chances = rng.random(len(words))
        return " ".join(
            SLOPPY[word] if word in SLOPPY and chance < traits.typo else word
            for word, chance in zip(words, chances, strict=True)
        )

    def posterior(self, scenario: Scenario, turns: Sequence[Turn]) -> tuple[float, ...]:
        """``P(type | history)`` in the order of ``types``, from the user's own turns in ``turns``.

        A past turn that no type still possible could have said (a history of another user model, say) tells
        nothing about the type: there the posterior starts again from the prior.
        """
        goal, history = goal_of(scenario), as_history(turns)
        prior = posterior = self._prior(scenario)
        for index, (is_user, text) in enumerate(history):
            if is_user:
                likelihoods = self._likelihoods(goal, history[:index], text)
                joint = [p * q for p, q in zip(posterior, likelihoods, strict=True)]
                total = sum(joint)
                posterior = tuple(p / total for p in joint) if total > 0.0 else prior
        return posterior

    def _likelihoods(self, goal: Goal, history: History, reply: str) -> tuple[float, ...]:
        """``P(reply | history, type)`` for each type."""
        typed = reply.split(" ")
        words = tuple(TIDY.get(word, word) for word in typed)
        view = read_history(goal, history)
        likelihoods = []
        for traits in self.types:
            probability = reply_distribution(goal, view, traits.manner).get(words, 0.0)
            if probability:
                probability *= typing_probability(typed, words, traits.typo)
            likelihoods.append(probability)
        return tuple(likelihoods)

    def log_prob(self, scenario: Scenario, turns: Sequence[Turn], reply: str) -> float:
        """Exact ``log P(reply | turns)`` over the population; ``-inf`` for what nobody would say.

        Defined on any history; see ``posterior`` for one that this population cannot have produced.
        """
        likelihoods = self._likelihoods(goal_of(scenario), as_history(turns), reply)
        total = math.fsum(p * q for p, q in zip(self.posterior(scenario, turns), likelihoods, strict=True))
        return math.log(total) if total > 0.0 else -math.inf

    def support(self, scenario: Scenario, turns: Sequence[Turn]) -> list[str]:
        """Every text with a probability above 0 as the next reply, typing variants included: over it ``log_prob`` sums
        to one, which is what makes it exact."""
        goal = goal_of(scenario)
        view = read_history(goal, as_history(turns))
        texts: dict[str, None] = {}
        for traits in self.types:
            for words in reply_distribution(goal, view, traits.manner):
                spellings = [(w, SLOPPY[w]) if w in SLOPPY and traits.typo else (w,) for w in words]
                texts.update(dict.fromkeys(" ".join(typed) for typed in product(*spellings)))
        return [text for text in texts if self.log_prob(scenario, turns, text) > -math.inf]


def _pick(probabilities: Sequence[float], chance: float) -> int:
    """Index by inversion of the cumulative distribution; never one of probability 0."""
    last = 0
    for index, probability in enumerate(probabilities):
        if probability > 0.0:
            if chance < probability:
                return index
            chance -= probability
            last = index
    return last
