"""Density-ratio weights: by hand, and as a property of any logs."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.calibration.base import CalibrationInputs, ExtraTurn
from calibrated_rl.calibration.density_ratio import LOGS, history_weights, scaled_and_clipped
from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.calibration.weighted import WeightedSFT
from calibrated_rl.chat.tokens import ChatTokens, SideView
from calibrated_rl.components.component import build
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.learner.sample import Sample
from calibrated_rl.models.tiny import tiny_tokenizer
from calibrated_rl.run.start_policy import StartPolicy
from calibrated_rl.training.simulator_calibration import ask_humans, more_logs


def view(turns: list[int], mask: list[bool]) -> TokenSequence:
    size = len(turns)
    return TokenSequence(
        ids=np.zeros(size, np.int32), mask=np.asarray(mask), logprobs=np.zeros(size, np.float32),
        versions=np.zeros(size, np.int32), turns=np.asarray(turns, np.int32),
    )  # fmt: skip


POLICY = view([0, 1, 2, 3], [False, False, True, False])
USER = view([0, 1, 2, 3], [False, True, False, True])


def log_probs(*values: float) -> np.ndarray:
    """Of a policy's view of greeting, user, policy, user, ...: only the policy's tokens have any."""
    whole = np.full(2 + 2 * len(values), np.nan, np.float32)
    whole[2::2] = values
    return whole


def test_weights_are_ratios_of_the_turns_before() -> None:
    """Two logs: greeting 0, user 1, policy 2, user 3. The policy's turn is 3 times and 1 times as likely now."""
    old, now = [log_probs(-2.0)] * 2, [log_probs(-2.0 + math.log(3.0)), log_probs(-2.0)]
    found = history_weights([POLICY] * 2, now, old, [USER] * 2, clip=100.0)
    assert found.tokens[0] == pytest.approx([1, 1, 1, 1.5])  # first user turn: no policy turn before it
    assert found.tokens[1] == pytest.approx([1, 1, 1, 0.5])
    assert found.effective_share == pytest.approx(4.0**2 / (4 * (1 + 1 + 1.5**2 + 0.5**2)))
    assert found.by_turn[LOGS, 2].effective_share == pytest.approx(2.0**2 / (2 * (1.5**2 + 0.5**2)))
    assert found.by_turn[LOGS, 1].effective_share == found.by_turn[LOGS, 1].mean == 1
    clipped = history_weights([POLICY] * 2, now, old, [USER] * 2, clip=1.2)
    # What is clipped of the one goes to the other.
    assert [tokens[3] for tokens in clipped.tokens] == pytest.approx([1.2, 0.8])
    assert clipped.metrics()["calibration_mean_weight_turn_2"] == pytest.approx(1.0)
    of = clipped.by_turn["logs", 2]
    assert 0 < of.clipped_share == clipped.metrics()["calibration_clipped_share_turn_2"] < 1


def test_scale_by_hand() -> None:
    """Ratios 8, 4, 2, 1, 1 with clip 2: one is clipped, and the others, 8 together, share 5 - 2."""
    found = scaled_and_clipped(np.log([2.0, 8.0, 1.0, 4.0, 1.0]), clip=2.0)
    assert found == pytest.approx([2 * 3 / 8, 2, 3 / 8, 4 * 3 / 8, 3 / 8])
    assert scaled_and_clipped([-900.0, -2000.0, 700.0], clip=1.5) == pytest.approx([1.5, 0.0, 1.5])
    assert scaled_and_clipped([3.0], clip=5.0) == pytest.approx([1.0])
    assert scaled_and_clipped([2.0, -2.0, 0.0], clip=1.0) == pytest.approx([1, 1, 1])
    assert scaled_and_clipped([7.0] * 4, clip=5.0) == pytest.approx([1, 1, 1, 1])
    with pytest.raises(ValueError, match="mean 1"):
        scaled_and_clipped([0.0], clip=0.9)
    with pytest.raises(UserError, match="finite"):
        scaled_and_clipped([0.0, -math.inf], clip=5.0)


@given(
    st.lists(st.floats(-2000, 2000) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60),
    st.floats(1.0, 50.0),
)
@settings(max_examples=300, deadline=None)
def test_any_weights_have_mean_one_below_the_clip_in_the_order_of_the_ratios(logs: list[float], clip: float) -> None:
    weights = scaled_and_clipped(logs, clip)
    assert weights.mean() == pytest.approx(1.0, rel=1e-9)
    assert weights.max() <= clip and weights.min() >= 0
    order = np.argsort(logs)
    assert (np.diff(weights[order]) >= -1e-9).all()
    free = (weights < clip * (1 - 1e-6)) & (weights > 1e-300)
    if free.sum() > 1:  # below the clip they are the ratios, scaled
        scale = np.log(weights[free]) - np.asarray(logs)[free]
        assert np.ptp(scale) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("deviation", [1.0, 2.0])
def test_no_turn_loses_its_data(deviation: float) -> None:
    """3,000 logs of eight user turns, log-ratio per policy turn N(-s^2/2, s^2)."""
    rng = np.random.default_rng(0)
    turns = list(range(17))
    policy = view(turns, [t > 0 and t % 2 == 0 for t in turns])
    user = view(turns, [t % 2 == 1 for t in turns])
    old = np.zeros(17, np.float32)
    now = [rng.normal(-(deviation**2) / 2, deviation, size=17).astype(np.float32) for _ in range(3000)]
    found = history_weights([policy] * 3000, now, [old] * 3000, [user] * 3000, clip=5.0)
    for turn in range(1, 9):
        weights = np.array([tokens[2 * turn - 1] for tokens in found.tokens])
        assert weights.mean() == pytest.approx(1.0, abs=1e-5) and weights.max() <= 5.0
        assert found.by_turn[LOGS, turn].effective_share >= 1 / 5.0  # the least that a clip of 5 allows


def test_temper_and_window() -> None:
    policy = view([0, 1, 2, 3, 4, 5], [False, False, True, False, True, False])
    user = view([0, 1, 2, 3, 4, 5], [False, True, False, True, False, True])
    old = [log_probs(0.0, 0.0)[:6]] * 2
    now = [log_probs(math.log(3.0), math.log(9.0))[:6], old[0]]
    whole, tempered, last = (
        history_weights([policy] * 2, now, old, [user] * 2, clip=100.0, **options).tokens[0][5]
        for options in ({}, {"temper": 0.5}, {"window": 1})
    )
    assert whole == pytest.approx(2 * 27 / 28)
    assert tempered == pytest.approx(2 * math.sqrt(27) / (1 + math.sqrt(27)))
    assert last == pytest.approx(2 * 9 / 10)


def test_what_was_gathered_is_weighted_by_the_policy_that_spoke_and_counts_as_a_logged_turn_does() -> None:
    """Replies on histories of an earlier policy; the current one would go on as one of both did, and it speaks at
    a temperature."""
    reply = view([0, 1, 2, 3], [False, False, False, True])
    spoken = [log_probs(-1.0), log_probs(-1.0)]
    asked: list[tuple[float, int]] = []

    def now(name: str, views: list[TokenSequence], temperature: float) -> list[np.ndarray]:
        asked.append((temperature, len(views)))
        return [log_probs(-1.0 + math.log(4.0)), log_probs(-1.0)]

    extra = [ExtraTurn(sample=Sample(tokens=reply), source="update 9", policy=POLICY, spoken=s) for s in spoken]
    inputs: Any = SimpleNamespace(
        learner=SimpleNamespace(log_probs=now), temperature=0.7, log_probs_at_start=lambda logs: [],
        policy_chat=None, simulator_chat=None,
    )  # fmt: skip
    samples, found = WeightedSFT(WeightedSFT.Config()).weighted(inputs, [], extra)
    assert asked == [(0.7, 2)]
    weights = [sample.token_weights[3] for sample in samples if sample.token_weights is not None]
    assert weights == pytest.approx([2 * 4 / 5, 2 * 1 / 5]) and found.by_turn["update 9", 2].mean == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"ratio_clip": 0.5}, "ratio_clip"), ({"ratio_clip": math.nan}, "ratio_clip"), ({"temper": 0.0}, "temper"),
     ({"temper": 1.5}, "temper"), ({"window": -1}, "window"), ({"folds": 1}, "folds")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"calibration.method_config.*{key}"):
        build("calibrated_rl.calibration.weighted:WeightedSFT", change, "calibration.method_config")


def test_a_start_that_is_no_clone_of_the_logged_policy_is_refused() -> None:
    with pytest.raises(UserError, match="policy.warm_start.epochs is 0.*folds=2"):
        WeightedSFT(WeightedSFT.Config()).check(start_epochs=0)
    WeightedSFT(WeightedSFT.Config()).check(start_epochs=1)
    WeightedSFT(WeightedSFT.Config(folds=2)).check(start_epochs=0)


def test_folds_ask_the_clones() -> None:
    log: Any = object()
    inputs: CalibrationInputs = SimpleNamespace(  # type: ignore[assignment]
        log_probs_cross_fitted=lambda logs, folds: [("crossed", folds)] * len(logs),
        log_probs_at_start=lambda logs: ["start"] * len(logs),
    )
    assert WeightedSFT(WeightedSFT.Config(folds=3))._logged(inputs, [log]) == [("crossed", 3)]
    assert WeightedSFT(WeightedSFT.Config())._logged(inputs, [log]) == ["start"]


def test_folds_are_even_and_stay() -> None:
    folds = np.array([fold_of(f"calibration-{i}", 3) for i in range(3000)])
    assert np.bincount(folds).min() > 900
    assert [fold_of(name, 2) for name in "abcd"] == [1, 1, 1, 0]  # a run that goes on finds its clones again


class Clones:
    """In place of the learner: a clone's log-probs are the number of its fold."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.scored = 0

    def load(self, slot: str, folder: Path, *, trainable: bool) -> None:
        assert slot == "simulator" and not trainable
        self.loaded.append(folder.name)

    def log_probs(self, slot: str, views: list[TokenSequence]) -> list[np.ndarray]:
        self.scored += len(views)
        return [np.full(4, float(self.loaded[-1].split("-")[1]), np.float32) for _ in views]


def logged(name: str) -> Dialogue:
    turns = [(Side.POLICY, "hello"), (Side.USER, "hi"), (Side.POLICY, "which day ?"), (Side.USER, "friday")]
    return Dialogue(
        id=name, task="t", ending="done", outcome=None, kind="log",
        turns=tuple(Turn(side=side, text=text, source=Source.LOG) for side, text in turns),
        scenario=Scenario(
            id=name, split=Split.CALIBRATION, policy_instructions="", user_instructions="", greeting="hello"
        ),
    )  # fmt: skip


def test_each_log_is_scored_by_a_clone_that_was_not_fitted_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrated_rl.run.start_policy.log_view", lambda log, side, chat: POLICY)
    logs, fitted, clones = [logged(str(i)) for i in range(20)], {}, Clones()

    def fit(name: str, slot: str, known: dict[Split, list[Dialogue]], sft: Any) -> Path:
        fitted[name] = {log.id for log in known[Split.CALIBRATION]}
        return Path(name)

    inputs: Any = SimpleNamespace(config=RunConfig(), logs={Split.CALIBRATION: logs})
    models: Any = SimpleNamespace(policy=SimpleNamespace(chat=None))
    fits: Any = SimpleNamespace(fit_policy=fit, start_policy=lambda: Path("start"))
    start = StartPolicy(inputs, models, clones, fits, stays_loaded=True)  # type: ignore[arg-type]
    stranger = logged("of another split")
    found = start.cross_fitted_log_probs([*logs, stranger], 3)
    assert len(fitted) == 3
    for log, values in zip([*logs, stranger], found, strict=True):
        assert log.id not in fitted[f"clone-{int(values[0])}-of-3"]
    assert set.union(*fitted.values()) == {log.id for log in logs}
    assert clones.scored == 21 and len(start.cross_fitted_log_probs(logs, 3)) == 20
    assert clones.scored == 21 and len(fitted) == 3  # once a run


def test_further_turns_know_which_policy_spoke() -> None:
    """Replies of people keep the log-probs with which the policy spoke; turns of further logs know their log. What the
    simulator said before a reply stays as it sampled it, though its text would be encoded otherwise."""
    texts = ["hello i want a table on friday", "which day ?"] * 3
    chat = ChatTokens(tiny_tokenizer(texts, vocab_size=400, context=512))
    by_byte = [*chat.tokenizer.convert_tokens_to_ids(list("friday")), chat.end_of_turn]
    assert by_byte != chat.said("friday")
    log = logged("d")
    simulator = SideView(chat, log.scenario, Side.USER)
    simulator.hear(log.turns[0])
    simulator.speak(by_byte)
    simulator.hear(log.turns[2])
    asked_at = list(simulator.prompt_ids)
    simulator.speak_text(log.turns[3].text)
    met = replace(log, update=7, policy_tokens=POLICY, user_tokens=simulator.sequence())
    people = SimpleNamespace(sample=lambda scenario, history, seed: "friday")
    inputs: Any = SimpleNamespace(human=people, reserve=[logged("r")])
    side = SimpleNamespace(chat=chat)
    models: Any = SimpleNamespace(policy=side, simulator=side)
    (asked,) = ask_humans(inputs, models, [met], 1, 0)
    further = list(more_logs(inputs, models))
    assert asked.source == "update 7" and asked.policy is POLICY and asked.spoken is POLICY.logprobs
    reply = chat.said("friday")
    assert asked.sample.tokens.ids.tolist() == asked_at + reply
    assert asked.sample.tokens.ids[asked.sample.tokens.mask].tolist() == reply
    assert set(asked.sample.tokens.turns[asked.sample.tokens.mask]) == {3}
    assert [(turn.source, turn.spoken, turn.log) for turn in further] == [(LOGS, None, inputs.reserve[0])]
