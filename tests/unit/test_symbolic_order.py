"""Figures without an exact counterpart are checked for order: where the exact shift is larger, they are further off."""

from dataclasses import replace

import numpy as np
import pytest

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.shift.estimators.encoder import EncoderTest
from calibrated_rl.shift.estimators.mauve import Mauve
from calibrated_rl.shift.estimators.tokens import TokenTest
from calibrated_rl.shift.interface import DialogueSets
from research.theory.symbolic import Dialogues, sample, simulator_shift
from research.theory.symbolic_worlds import random_construction
from research.theory.theory_coverage import as_words
from tests.support.made_up_logs import dialogue, policy, user

SHIFTS = (0.0, 0.15, 0.45)


def drawn(shift: float, seed: int) -> Dialogues:
    """Dialogues of one world whose exact shift per turn is ``shift``."""
    rng = np.random.default_rng(seed)
    made = random_construction("forgetting", rng, horizon=3, epsilon=0.0, delta=shift)
    exact = simulator_shift(made.world, made.policy, made.human, made.simulator)
    np.testing.assert_allclose(exact, shift, atol=1e-9)
    return sample(made.world, made.policy, made.human, made.logged, made.simulator, 250, rng)


def spoken(one: Dialogues, side: str) -> list[Dialogue]:
    """Each with the replies of one side: their histories are the same."""
    said = one.reply if side == "human" else one.simulated
    return [
        dialogue(f"{side}{n}", policy("hi"), *(user(f"reply{symbol} " * 3) for symbol in row))
        for n, row in enumerate(said)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("test", [EncoderTest(EncoderTest.Config(encoder="hashing", null_halvings=0)),
                                  TokenTest(TokenTest.Config(null_halvings=0))], ids=["encoder", "tokens"])  # fmt: skip
def test_accuracies_are_in_the_order_of_the_exact_shift(test: EncoderTest | TokenTest) -> None:
    found = [test.measure(as_words(drawn(shift, 5)))[f"{test.name}_accuracy"] for shift in SHIFTS]
    values = [figure.value for figure in found]
    assert values == sorted(values) and found[0].low < 0.5 < found[2].low
    # No classifier is right more often than (1 + TV) / 2.
    assert found[2].low <= (1 + SHIFTS[2]) / 2


def test_mauve_is_in_the_order_of_the_exact_shift() -> None:
    measure = Mauve(Mauve.Config(encoder="hashing", null_halvings=0))
    values = []
    for shift in SHIFTS:
        one = drawn(shift, 5)
        sets = DialogueSets(human=spoken(one, "human"), simulator=spoken(one, "simulator"))
        values.append(measure.measure(sets)["mauve"].value)
        same = replace(sets, simulator=sets.human)
        assert measure.measure(same)["mauve"].value == pytest.approx(1.0)
    # It sees the replies without their histories, over which much of a conditional shift averages out.
    assert values[0] > values[1] > values[2]
