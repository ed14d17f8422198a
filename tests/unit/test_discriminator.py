"""The discriminator between human and simulated replies: what it finds, what it does not, and what it must not see."""

import math

import numpy as np
import pytest

from calibrated_rl.calibration.discriminator import (
    CrossFitted,
    Discriminator,
    DiscriminatorConfig,
    ReplyPair,
    told_apart,
)
from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.errors import UserError

END = 5
QUICK = DiscriminatorConfig(width=16, epochs=6, batch=32, learning_rate=0.01)


def said(*words: int) -> np.ndarray:
    return np.array([*words, END], np.int32)


def pairs(count: int, human_yes: float, simulator_yes: float, seed: int = 0) -> list[ReplyPair]:
    """Dialogues of four histories; both sides say 11 or 12."""
    random = np.random.default_rng(seed)
    return [
        ReplyPair(
            dialogue=f"d{i // 4}", context=random.integers(20, 40, 12).astype(np.int32),
            human=said(11 if random.random() < human_yes else 12),
            simulator=said(11 if random.random() < simulator_yes else 12),
        )
        for i in range(count)
    ]  # fmt: skip


def scores(models: CrossFitted, of: list[ReplyPair]) -> tuple[np.ndarray, np.ndarray]:
    names, contexts = [pair.dialogue for pair in of], [pair.context for pair in of]
    human = models.log_odds(names, contexts, [pair.human for pair in of])
    return human, models.log_odds(names, contexts, [pair.simulator for pair in of])


def test_told_apart_by_hand() -> None:
    """Right, wrong, and no difference."""
    assert told_apart(np.array([1.0, -2.0, 0.5]), np.array([0.0, 0.0, 0.5])).tolist() == [1.0, 0.0, 0.5]


def test_log_odds_are_the_log_ratio_of_the_probabilities() -> None:
    """Humans say 11 with probability 0.8, the simulator with 0.4: log 2 and log 1/3."""
    model = Discriminator(pairs(1000, 0.8, 0.4), QUICK, seed=0)
    context = np.arange(20, 32, dtype=np.int32)
    found = model.log_odds([context] * 2, [said(11), said(12)])
    assert found == pytest.approx([math.log(2), math.log(1 / 3)], abs=0.35)


def test_replies_that_do_not_fit_their_history_are_found() -> None:
    """Humans repeat the word that follows 9; the simulator another word of the history. Alone, both say the same."""
    random = np.random.default_rng(0)
    made = []
    for i in range(400):
        words = random.permutation(np.arange(20, 32))[:6].astype(np.int32)
        context = np.concatenate([words[:3], [9], words[3:]]).astype(np.int32)
        made.append(
            ReplyPair(dialogue=f"d{i}", context=context, human=said(words[3]), simulator=said(random.choice(words[:3])))
        )
    models = CrossFitted(made, DiscriminatorConfig(width=16, epochs=8, batch=32, learning_rate=0.02), seed=0)
    assert told_apart(*scores(models, made)).mean() > 0.9


def test_sides_that_speak_alike_are_told_apart_by_chance_alone() -> None:
    """Whatever it has learned by heart: each reply is scored by one that has not seen its dialogue."""
    alike = pairs(400, 0.5, 0.5)
    human, simulator = scores(CrossFitted(alike, QUICK, seed=0), alike)
    assert told_apart(human, simulator).mean() == pytest.approx(0.5, abs=0.08)


def test_no_score_hangs_on_its_own_dialogue() -> None:
    before = pairs(80, 0.9, 0.1)
    in_fold = [i for i, pair in enumerate(before) if fold_of(pair.dialogue, 2) == 0]
    name = before[in_fold[0]].dialogue
    turned = [
        ReplyPair(dialogue=pair.dialogue, context=pair.context, human=pair.simulator, simulator=pair.human)
        if pair.dialogue == name
        else pair
        for pair in before
    ]
    of_dialogue = [pair for pair in before if pair.dialogue == name]
    of_others = [pair for pair in before if fold_of(pair.dialogue, 2) == 1]
    first, second = (CrossFitted(each, QUICK, seed=0) for each in (before, turned))
    assert scores(first, of_dialogue)[0].tolist() == scores(second, of_dialogue)[0].tolist()
    assert scores(first, of_others)[0].tolist() != scores(second, of_others)[0].tolist()


def test_same_pairs_same_scores_whatever_is_beside_them() -> None:
    made = pairs(80, 0.9, 0.1)
    first, second = (Discriminator(made, QUICK, seed=3) for _ in range(2))
    contexts, replies = [pair.context for pair in made], [pair.human for pair in made]
    of_all = first.log_odds(contexts, replies)
    assert of_all.tolist() == second.log_odds(contexts, replies).tolist()
    longer = np.concatenate([contexts[1]] * 9)  # pads the others
    assert first.log_odds([contexts[0], longer], [replies[0], said(*range(20, 36))])[0] == of_all[0]
    assert of_all.tolist() != Discriminator(made, QUICK, seed=4).log_odds(contexts, replies).tolist()


def test_long_contexts_keep_their_beginning_and_their_end() -> None:
    model = Discriminator(pairs(16, 0.9, 0.1), DiscriminatorConfig(width=4, epochs=1, context_tokens=5), seed=0)
    assert model._cut(np.arange(9, dtype=np.int32)).tolist() == [0, 1, 6, 7, 8]
    assert model._cut(np.arange(5, dtype=np.int32)).tolist() == [0, 1, 2, 3, 4]


def test_tokens_that_were_never_seen_are_scored_and_no_replies_are_no_scores() -> None:
    model = Discriminator(pairs(16, 0.9, 0.1), DiscriminatorConfig(width=4, epochs=1), seed=0)
    assert np.isfinite(model.log_odds([np.array([999], np.int32)], [said(998)])).all()
    assert model.log_odds([], []).shape == (0,)


def test_replies_of_a_single_dialogue_are_refused() -> None:
    with pytest.raises(UserError, match="at least 2 dialogues in each fold"):
        Discriminator(pairs(4, 0.5, 0.5), QUICK, seed=0)
    with pytest.raises(UserError, match="discriminator.width"):
        DiscriminatorConfig(width=1)
