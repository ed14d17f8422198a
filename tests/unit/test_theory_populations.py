"""Exact values of the experiments on whole dialogues: by hand, by enumeration, and by what large samples show."""

import numpy as np
import pytest

from research.theory.symbolic import World, sample, stationary
from research.theory.symbolic_worlds import random_construction
from research.theory.theory_populations import (
    LEAVE,
    histories,
    history_distance,
    history_estimates,
    numbers_of_turns,
    population_estimates,
    shares_of_symbols,
    spelled,
    turns_reached,
)

RNG = np.random.default_rng(0)
ONE_STATE = World(
    start_S=np.ones(1), successor_SAX=np.zeros((1, 1, 2), np.int64), reward_SAX=np.zeros((1, 1, 2)),
    terminal_S=np.zeros(1),
)  # fmt: skip


def test_who_leaves_with_a_quarter_of_all_turns_by_hand() -> None:
    """Three turns at most: reached with 1, 3/4, 9/16; over after 1, 2, 3 turns with 1/4, 3/16, 9/16."""
    joint = turns_reached(ONE_STATE, stationary([[1.0]], 3), stationary([[[0.25, 0.75]]], 3))
    assert joint.sum(axis=(1, 2, 3)) == pytest.approx([1, 3 / 4, 9 / 16])
    assert numbers_of_turns(joint) == pytest.approx([1 / 4, 3 / 16, 9 / 16])
    assert shares_of_symbols(joint) == pytest.approx([1 / 4, 3 / 4])


def test_histories_by_hand() -> None:
    found = histories(ONE_STATE, stationary([[1.0]], 2), stationary([[[0.25, 0.75]]], 2), 2)
    assert found == pytest.approx([1 / 16, 3 / 16, 3 / 16, 9 / 16])


def test_no_shift_no_distance_and_never_more_than_the_shifts_add_up_to() -> None:
    for shift in (0.0, 0.1, 0.3):
        made = random_construction("forgetting", np.random.default_rng(1), horizon=3, epsilon=shift, delta=shift)
        most = np.mean([2 * shift * t for t in (1, 2, 3)])
        assert 0 <= history_distance(made) <= most + 1e-12
        assert (history_distance(made) == pytest.approx(0)) == (shift == 0)
        assert histories(made.world, made.policy, made.human, 3).sum() == pytest.approx(1)


def test_large_samples_show_what_was_computed() -> None:
    made, rng = random_construction("forgetting", RNG, horizon=4, epsilon=0.2, delta=0.2), np.random.default_rng(2)
    drawn = sample(made.world, made.policy, made.human, made.logged, made.simulator, 1500, rng)
    joint = turns_reached(made.world, made.policy, made.human)
    lengths = np.array([len(d.user_turn_indices()) for d in spelled(drawn, "p", until_leave=True)])
    shares = np.bincount(lengths, minlength=5)[1:] / len(lengths)
    assert shares == pytest.approx(numbers_of_turns(joint), abs=0.04)
    for name, (estimate, truth) in population_estimates(made, drawn, 0, rng).items():
        assert estimate.value == pytest.approx(truth, abs=0.02 + 0.5 * (estimate.high - estimate.low)), name


def test_a_dialogue_ends_where_the_user_leaves() -> None:
    made = random_construction("forgetting", RNG, horizon=4, epsilon=0.2, delta=0.2)
    drawn = sample(made.world, made.policy, made.human, made.logged, made.simulator, 50, np.random.default_rng(3))
    for dialogue, reply in zip(spelled(drawn, "p", until_leave=True), drawn.reply, strict=True):
        words = [dialogue.turns[i].text.split() for i in dialogue.user_turn_indices()]
        symbols = [int(own[0].removeprefix("reply")) for own in words]
        assert symbols == reply[: len(symbols)].tolist() and LEAVE not in symbols[:-1]
        assert symbols[-1] == LEAVE or len(symbols) == 4
        assert [len(own) for own in words] == [x + 1 for x in symbols]


def test_the_lower_bound_lies_below_and_sees_a_large_shift() -> None:
    made = random_construction("forgetting", np.random.default_rng(4), horizon=3, epsilon=0.4, delta=0.4)
    drawn = sample(made.world, made.policy, made.human, made.logged, made.simulator, 150, np.random.default_rng(5))
    ((estimate, truth),) = history_estimates(made, drawn, 0).values()
    assert 0 < estimate.low <= truth
