"""What the value head reads, and what its guard takes from turns that logs do not have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.value_head import read_at
from calibrated_rl.models.tiny import tiny_tokenizer
from calibrated_rl.settings.fields import NotAllowed
from calibrated_rl.turn_values.base import LEAST_LOGGED, Case, Guard, TurnValue, explained, logged_turns
from calibrated_rl.turn_values.checked import values_of
from calibrated_rl.turn_values.ridge import Ridge
from calibrated_rl.turn_values.value_head import (
    Scale,
    ValueHead,
    ends_of_turns,
    return_samples,
    units_of,
    value_sequence,
)
from tests.support.scored_logs import SAID, log


def logs() -> list[Dialogue]:
    return [log(number, float(number % 2), *SAID) for number in range(2 * LEAST_LOGGED)]


@pytest.fixture(scope="module")
def chat() -> ChatTokens:
    return ChatTokens(tiny_tokenizer([*SAID, "hello book number"], vocab_size=400, context=512))


def test_units_are_pairs_of_neighbours_each_time_that_they_occur() -> None:
    assert units_of("a b A b") == sorted([" a#0", "a b#0", "b a#0", "a b#1", "b #0"])
    assert units_of("") == [" #0"] and len(units_of("please " * 12)) == 13


def test_it_reads_at_the_tokens_that_end_turns(chat: ChatTokens) -> None:
    """One token a turn, that of its end; the same whatever follows, so that one pass values all turns of a dialogue."""
    made = log(0, 1.0, *SAID)
    tokens = view_of(chat, made.scenario, Side.POLICY, made.turns).sequence()
    (ends,) = np.nonzero(ends_of_turns(tokens))
    assert tokens.turns[ends].tolist() == [2, 4, 6]
    assert all(end == np.flatnonzero(tokens.mask & (tokens.turns == tokens.turns[end]))[-1] for end in ends)
    sequence = value_sequence(chat, made.scenario, made.turns)
    (masked,) = np.nonzero(sequence.mask)
    assert (masked - 1).tolist() == ends.tolist() and len(sequence) == len(tokens) + 1
    assert np.array_equal(sequence.ids[: len(tokens)], tokens.ids)
    first = value_sequence(chat, made.scenario, made.turns[:3])
    assert np.array_equal(first.ids[:-1], sequence.ids[: len(first) - 1])
    silent = value_sequence(chat, made.scenario, made.turns[:2])
    assert not silent.mask.any()


def test_a_masked_first_token_is_not_lost() -> None:
    """``read_at`` may ask for the very first token: the mask moves to the one that follows."""
    made = log(0, 1.0, SAID[0])
    chat = ChatTokens(tiny_tokenizer(SAID, vocab_size=300, context=64))
    tokens = view_of(chat, made.scenario, Side.POLICY, made.turns).sequence()
    chosen = np.zeros(len(tokens), np.bool_)
    chosen[[0, -1]] = True
    assert np.flatnonzero(read_at(tokens, chosen).mask).tolist() == [1, len(tokens)]


def test_targets_are_returns_in_units_of_their_deviation(chat: ChatTokens) -> None:
    scale = Scale.of(logs())
    assert scale == Scale(mean=0.5, deviation=0.5)
    assert Scale.of([log(0, 3.0, *SAID)]) == Scale(mean=3.0, deviation=1.0)
    unusable = [log(90, None, *SAID), log(91, 1.0)]
    found = return_samples(chat, [*logs(), *unusable], scale.mean, scale.deviation)
    assert [sample.name for sample in found] == [made.id for made in logs()]
    for number, sample in enumerate(found):
        assert sample.targets is not None and set(sample.targets.tolist()) == {(-1.0, 1.0)[number % 2]}


def test_the_guard_takes_repetition_and_disorder() -> None:
    guard = Guard(logs(), units_of)
    as_said = guard(SAID, np.full(len(SAID), 0.8))
    np.testing.assert_allclose(as_said, 0.8)
    again = [" ".join([text] * 6) for text in SAID]
    backwards = [" ".join(reversed(text.split())) for text in SAID]
    for texts in (again, backwards, ["please " * 12] * 3, [""] * 3):
        assert (guard(texts, np.full(3, 0.8)) < 0.5).all()
    assert guard(SAID, np.full(3, 7.0)) == pytest.approx(1.0) and guard(SAID, np.full(3, -7.0)) == pytest.approx(0.0)


def test_explained_variance() -> None:
    returns = np.array([0.0, 1.0, 2.0, 3.0])
    assert explained(returns, returns) == 1.0
    assert explained(np.full(4, 1.5), returns) == 0.0
    assert explained(returns + [1, -1, 1, -1], returns) == pytest.approx(1 - 1 / 1.25)
    assert np.isnan(explained(returns, np.ones(4)))


def test_settings_that_fit_nothing_are_refused() -> None:
    config = ValueHead.Config
    with pytest.raises(UserError, match=r"fit\.epochs is 0"):
        config(fit=type(config().fit)(epochs=0))
    with pytest.raises((UserError, NotAllowed), match="folds"):
        config(folds=0)
    assert ValueHead(config(folds=1)).cross_fits is False and ValueHead(config()).frozen_models == 3


def test_logs_without_scores_are_refused_before_anything_starts() -> None:
    scored, unscored = logs(), [log(0, None, *SAID)]
    value_head, ridge = ValueHead(ValueHead.Config()), Ridge(Ridge.Config())
    by_split = dict.fromkeys(Split, scored)
    for method, needed in ((ridge, ("calibration", "tuning")), (value_head, ("calibration", "monitor", "tuning"))):
        method.check_logs(by_split)
        for split in needed:
            with pytest.raises(UserError, match=rf"the arm 'static' .* the {split} logs, .*logs\.{split}"):
                method.check_logs({**by_split, Split(split): unscored})
    ridge.check_logs({**by_split, Split.MONITOR: unscored})


class Odd(TurnValue):
    """Returns what it was given."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def value(self, cases: Sequence[Case]) -> Any:
        return self.returned

    def explained(self, logs: Sequence[Dialogue]) -> float:
        return 0.0


def test_what_a_value_returns_is_used_or_refused() -> None:
    cases, _ = logged_turns(logs()[:1])
    assert values_of(Odd([1, 2.5, 0]), cases).tolist() == [1.0, 2.5, 0.0]
    for returned, reason in (([1.0], r"has the shape \[1\]"), (None, "it is None"), ([1, np.inf, 0], r"\[1\] is inf")):
        with pytest.raises(UserError, match=f"the turn value Odd: value .*{reason}"):
            values_of(Odd(returned), cases)
