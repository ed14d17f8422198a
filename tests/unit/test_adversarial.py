"""Training a simulator against a discriminator: which pairs are hard, which credit replies get, when rounds end."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrated_rl.calibration.adversarial import Adversarial, hard_pairs
from calibrated_rl.calibration.base import CalibrationInputs, CalibrationMethod
from calibrated_rl.calibration.replies import SampledReply, history_view, human_replies, human_tokens
from calibrated_rl.calibration.rounds import (
    AdversarialRounds,
    Judgement,
    RoundsConfig,
    as_pair,
    first_and_last,
    refuse_other_splits,
)
from calibrated_rl.calibration.turing import Turing, credit
from calibrated_rl.components.component import build
from calibrated_rl.components.short_names import short_names
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Source, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.shift.checked import ESTIMATORS, estimator_class
from calibrated_rl.shift.two_sample.replies import ReplyTest
from calibrated_rl.statistics.intervals import Interval
from tests.support.made_up_logs import dialogue, policy, user
from tests.support.made_up_pools import tokens
from tests.support.paths import MICRO

HERE = "tests.unit.test_adversarial"
PATHS = ("calibrated_rl.calibration.adversarial:Adversarial", "calibrated_rl.calibration.turing:Turing")


# --- pairs and rewards -------------------------------------------------------------------------------------------


def test_hard_pairs_are_those_that_differ_most_whoever_said_which() -> None:
    differences = np.array([0.5, -3.0, 1.0, 2.0, -9.0])
    same = [False, False, False, False, True]
    assert hard_pairs(differences, same, 1.0).tolist() == [1, 3, 2, 0]  # in the last both said the same
    assert hard_pairs(differences, same, 0.5).tolist() == [1, 3] == hard_pairs(-differences, same, 0.5).tolist()
    assert hard_pairs(differences, same, 0.51).tolist() == [1, 3, 2]
    assert hard_pairs(np.zeros(2), [True, True], 1.0).tolist() == []


def test_credit_is_the_reward_above_the_groups_mean() -> None:
    found = credit([np.array([1.0, 2.0, 6.0]), np.array([4.0, 4.0]), np.array([-1.0, 1.0])])
    assert found.tolist() == [-2.0, -1.0, 3.0, 0.0, 0.0, -1.0, 1.0]


def test_of_a_log_that_was_asked_about_the_reply_alone_is_a_humans() -> None:
    log = dialogue("a", policy("hello"), user("table"), policy("which day ?"), user("friday"))
    made_up = replace(log.turns[1], source=Source.SIMULATOR), replace(log.turns[2], source=Source.POLICY)
    asked = replace(log, kind="log", turns=(log.turns[0], *made_up, log.turns[3]))
    assert [reply.text for reply in human_replies([asked])] == ["friday"]


def test_rounds_refine_one_simulator() -> None:
    with pytest.raises(UserError, match="leaves several simulators, and the rounds refine one"):
        Adversarial(Adversarial.Config(start="calibrated_rl.calibration.ensemble:EnsembleSFT"))


def test_replies_are_read_by_their_text_after_what_the_simulator_reads() -> None:
    log = dialogue("a", policy("hello"), user("table"), policy("which day ?"), user("friday"))
    first, second = human_replies([log])
    assert (first.text, second.text, second.index) == ("table", "friday", 3)
    by_byte = [*tokens().tokenizer.convert_tokens_to_ids(list("friday")), tokens().end_of_turn]
    view = history_view(tokens(), second)
    asked_at = list(view.prompt_ids)
    view.speak(by_byte)
    sampled = SampledReply(text="friday", tokens=view.sequence())
    pair = as_pair(tokens(), second, sampled)
    assert pair.same and pair.simulator.tolist() == tokens().said("friday") != by_byte
    assert pair.context.tolist() == asked_at and pair.dialogue == log.id
    human = human_tokens(tokens(), second)
    assert human.ids.tolist() == [*asked_at, *tokens().said("friday")]
    assert human.ids[human.mask].tolist() == tokens().said("friday")


class Rewarding:
    """In place of a learner and of discriminators: replies are worth their number of words."""

    def __init__(self) -> None:
        self.stepped: list[tuple[list[float], dict[str, Any]]] = []
        self.loaded: list[tuple[str, Path, bool]] = []

    def load(self, slot: str, folder: Path, *, trainable: bool) -> None:
        self.loaded.append((slot, folder, trainable))

    def log_odds(self, rows: Any, replies: list[np.ndarray]) -> np.ndarray:
        return np.array([len(ids) - 1.0 for ids in replies])

    def log_probs(self, slot: str, sequences: list[Any], temperature: float) -> list[np.ndarray]:
        assert (slot, temperature) == ("simulator_reference", 0.7)
        return [np.full(len(sequence), -1.0, np.float32) for sequence in sequences]

    def step(self, slot: str, samples: list[Any], loss: tuple[str, dict[str, Any]], *, temperature: float) -> Any:
        assert (slot, temperature) == (SIMULATOR, 0.7)
        self.stepped.append(([sample.advantage for sample in samples], loss[1]))
        return {"kl_reference_k3": 0.25, "entropy": 1.0}


def test_turing_rewards_within_the_limit_and_keeps_groups_together() -> None:
    log = dialogue("a", policy("hello"), user("friday"), policy("which day ?"), user("two"))
    replies, made, seeds = human_replies([log]), Rewarding(), list[int]()

    def sample(asked: Any, count: int, seed: int) -> list[list[SampledReply]]:
        seeds.append(seed)
        texts = {"friday": ["two", "two two two two two two two two"], "two": []}  # one history failed
        return [
            [SampledReply(text=text, tokens=human_tokens(tokens(), reply)) for text in texts[reply.text]]
            for reply in asked
        ]

    judgement: Any = SimpleNamespace(replies=replies, pairs=[SimpleNamespace(dialogue="a")] * 2, log_odds=made.log_odds)
    inputs: Any = SimpleNamespace(
        learner=made,
        sample_replies=sample,
        simulator_chat=tokens(),
        simulator_temperature=0.7,
        seed=0,
        update=0,
        folder=Path("current"),
    )
    method, done = Turing(Turing.Config(steps=2, reward_limit=3.0, kl_coefficient=0.5, group_size=2)), list[int]()
    metrics = method.train(inputs, judgement, 2, done.append)
    words = len(tokens().encode_text("two"))
    mean = (words + 3.0) / 2  # the second is cut from 8 words to the limit
    assert made.stepped == [([words - mean, 3.0 - mean], {"kl_coefficient": 0.5})] * 2
    assert metrics["reward_last"] == mean and metrics["kl_last"] == 0.25 and metrics["groups_with_signal_first"] == 1
    assert done == [1, 2] and seeds == [10_001, 10_002]
    assert made.loaded == [("simulator_reference", Path("current"), False)]
    method.train(inputs, judgement, 3, done.append)
    assert len(made.loaded) == 2
    kept = Turing(Turing.Config(steps=1, reference="start", group_size=2))
    for number in (1, 2):
        kept.train(inputs, judgement, number, done.append)
    assert len(made.loaded) == 3


def test_adversarial_weighs_the_hard_pairs_and_learns_from_all_human_replies() -> None:
    """Three histories: the first pair differs most, the second less, in the third both said the same."""
    log = dialogue(
        "a", policy("hello"), user("friday"), policy("which day ?"), user("two"), policy("so ?"), user("four")
    )
    replies = human_replies([log])
    sampled = [
        SampledReply(text=text, tokens=human_tokens(tokens(), reply))
        for text, reply in zip(("seven", "eight", "four"), replies, strict=True)
    ]
    pairs = [as_pair(tokens(), *each) for each in zip(replies, sampled, strict=True)]
    odds = {"friday": -2.0, "seven": 3.0, "two": 1.0, "eight": 0.0, "four": 0.5}
    by_ids = {tuple(tokens().said(text)): value for text, value in odds.items()}
    judgement: Any = SimpleNamespace(
        replies=replies, sampled=sampled, pairs=pairs,
        log_odds=lambda rows, said: np.array([by_ids[tuple(ids.tolist())] for ids in said]),
    )  # fmt: skip
    stepped: list[tuple[list[float], list[int], float]] = []

    def step(slot: str, samples: list[Any], loss: tuple[str, dict[str, Any]], *, temperature: float) -> Any:
        stepped.append(([s.weight for s in samples], [len(s.reference_logprobs) for s in samples], temperature))
        assert loss == ("calibrated_rl.learner.losses.dpo:DPO", {"beta": 1.0, "sft_coefficient": 2.0})
        hard = any(s.weight for s in samples)
        return {"preference_accuracy": 1.0, "preference_margin": float(len(stepped))} if hard else {}

    learner = SimpleNamespace(
        step=step, log_probs=lambda slot, of, temperature: [np.zeros(len(each), np.float32) for each in of]
    )
    inputs: Any = SimpleNamespace(
        learner=learner, simulator_chat=tokens(), simulator_temperature=0.7, seed=0, update=0, sample_replies=None
    )
    method = Adversarial(Adversarial.Config(hard_share=0.5, sft_coefficient=2.0, batch_pairs=1, epochs=2))
    metrics = method.train(inputs, judgement, 1, lambda done: None)
    assert sorted(weights for weights, *_ in stepped) == [[0.0, 0.0]] * 4 + [[1.0, 1.0]] * 2
    assert all(lengths[0] == lengths[1] and temperature == 0.7 for _, lengths, temperature in stepped)
    assert metrics["hard_pairs"] == 1 and metrics["alike_share"] == pytest.approx(1 / 3)
    first, last = (number for number, (weights, *_) in enumerate(stepped, start=1) if weights[0])
    assert (metrics["preference_margin_first"], metrics["preference_margin_last"]) == (first, last)


def test_first_and_last_are_means_over_a_fifth_of_the_steps_that_have_a_metric() -> None:
    steps = [{"a": float(i)} | ({"b": 1.0} if i == 3 else {}) for i in range(10)]
    found = first_and_last(steps, ("a", "b", "c"))
    assert found == {"a_first": 0.5, "a_last": 8.5, "b_first": 1.0, "b_last": 1.0}


# --- rounds ------------------------------------------------------------------------------------------------------


class Start(CalibrationMethod):
    """Leaves a file."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def check(self, start_epochs: int) -> None:
        if start_epochs == 7:
            raise UserError("the start refuses")

    def align(self, inputs: CalibrationInputs) -> dict[str, float]:
        inputs.folder.mkdir(parents=True, exist_ok=True)
        (inputs.folder / "config.json").write_text("start")
        return {"simulator_monitor_nll": 9.0, "of_the_start": 1.0}


class Scripted(AdversarialRounds):
    """Rounds whose judgements are given."""

    def __init__(self, judgements: list[tuple[float, float, float]], **settings: Any) -> None:
        """``judgements``: accuracy, its lower limit and likelihood after each round, the start first."""
        super().__init__(RoundsConfig(start=f"{HERE}:Start", **settings))
        self._judgements, self.trained = judgements, list[tuple[int, float]]()

    def steps(self, replies: int) -> int:
        return 2

    def judge(self, inputs: CalibrationInputs, number: int) -> Judgement:
        accuracy, low, nll = self._judgements[number]
        of: Any = SimpleNamespace()
        return Judgement(
            replies=[], sampled=[], pairs=[], discriminators=of, accuracy=Interval(accuracy, low, 1.0), nll=nll
        )

    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        self.trained.append((number, judgement.accuracy.mean))
        done(2)
        return {"pairs": 3.0}


class Model:
    """In place of the learner: what is in the slot is what was trained or loaded last."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def load(self, slot: str, folder: Path, **options: Any) -> None:
        self.done.append("load")

    def save(self, slot: str, folder: Path) -> None:
        self.done.append("save")


def aligned(folder: Path, judgements: list[tuple[float, float, float]], **settings: Any) -> Any:
    """Metrics, rounds that were trained, what was done with the model, progress."""
    method, model, progress = Scripted(judgements, **settings), Model(), list[tuple[int, int]]()
    inputs: Any = SimpleNamespace(
        folder=folder, learner=model, seed=0, sft=SimpleNamespace(adapters=True),
        progress=lambda done, steps: progress.append((done, steps)),
    )  # fmt: skip
    return method.align(inputs), method.trained, model.done, progress


def test_rounds_go_on_while_they_improve(tmp_path: Path) -> None:
    metrics, trained, done, progress = aligned(tmp_path, [(0.9, 0.8, 1.0), (0.8, 0.7, 1.0), (0.7, 0.6, 1.0)], rounds=2)
    assert trained == [(1, 0.9), (2, 0.8)] and done == ["load", "save", "save"]
    assert metrics["calibration_rounds_kept"] == 2 and metrics["calibration_discriminator_accuracy"] == 0.7
    assert metrics["of_the_start"] == 1 and metrics["simulator_monitor_nll"] == 1.0
    assert metrics["calibration_round_0_discriminator_accuracy"] == 0.9
    assert metrics["calibration_round_2_pairs"] == 3 and progress == [(2, 4), (4, 4)]


def test_a_round_that_is_told_apart_as_often_is_undone_and_the_last(tmp_path: Path) -> None:
    judgements = [(0.9, 0.8, 1.0), (0.8, 0.7, 1.0), (0.8, 0.7, 0.5), (0.6, 0.55, 1.0)]
    metrics, trained, done, _ = aligned(tmp_path, judgements, rounds=3)
    assert [number for number, _ in trained] == [1, 2] and done == ["load", "save", "load"]
    assert metrics["calibration_rounds_kept"] == 1 and metrics["calibration_round_2_discriminator_accuracy"] == 0.8


def test_a_round_that_makes_people_unlikely_is_undone(tmp_path: Path) -> None:
    """By more than the tolerance above the start, not above the round before."""
    judgements = [(0.9, 0.8, 1.0), (0.8, 0.7, 1.05), (0.7, 0.6, 1.11)]
    metrics, _, done, _ = aligned(tmp_path, judgements, rounds=3, nll_tolerance=0.1)
    assert metrics["calibration_rounds_kept"] == 1 and metrics["simulator_monitor_nll"] == 1.05
    assert done == ["load", "save", "load"]


def test_nothing_is_trained_where_nothing_is_told_apart(tmp_path: Path) -> None:
    for low in (0.5, math.nan):
        metrics, trained, done, _ = aligned(tmp_path, [(0.52, low, 1.0)])
        assert trained == [] and done == ["load"] and metrics["calibration_rounds_kept"] == 0
    metrics, trained, *_ = aligned(tmp_path, [(0.9, 0.8, 1.0), (0.5, 0.45, 1.0)], rounds=5)
    assert [number for number, _ in trained] == [1] and metrics["calibration_rounds_kept"] == 1


def test_discriminators_see_the_calibration_split_alone() -> None:
    logs = [dialogue("a", policy("hello"), user("friday"))]  # of the held-out split
    with pytest.raises(UserError, match="of the split held_out, and discriminators may see no other"):
        refuse_other_splits(logs)
    refuse_other_splits([replace(log, scenario=replace(log.scenario, split=Split.CALIBRATION)) for log in logs])


def test_the_start_may_refuse(tmp_path: Path) -> None:
    method = Scripted([])
    method.check(0)
    with pytest.raises(UserError, match="the start refuses"):
        method.check(7)
    with pytest.raises(UserError, match="calibration.method_config.start: .*Model' is not a component"):
        build(PATHS[0], {"start": f"{HERE}:Model"}, "calibration.method_config")


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("change", "key"),
    [({"rounds": 0}, "rounds"), ({"discriminator": {"folds": 1}}, "folds"), ({"nll_tolerance": -0.1}, "nll_tolerance"),
     ({"start": "plain"}, "start"), ({"monitored": 0}, "monitored"), ({"hard_shares": 0.5}, "hard_shares")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(path: str, change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"calibration.method_config.*{key}"):
        build(path, change, "calibration.method_config")


@pytest.mark.parametrize(
    ("path", "change"),
    [(PATHS[0], {"hard_share": 0.0}), (PATHS[0], {"beta": 0.0}), (PATHS[1], {"group_size": 1}),
     (PATHS[1], {"steps": 10_000}), (PATHS[1], {"reward_limit": 0.0})],
)  # fmt: skip
def test_settings_of_one_method_out_of_range_are_refused(path: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"calibration.method_config.*{next(iter(change))}"):
        build(path, change, "calibration.method_config")


@pytest.mark.parametrize("path", PATHS)
def test_both_are_chosen_by_a_line_of_yaml(path: str) -> None:
    config = load_config(MICRO, [f"calibration.method={path}", "shift.estimators=[words,tokens,encoder,surface,acts]"])
    assert config.calibration.method == path


RECURRENT = """
from calibrated_rl.shift.estimators.words import WordsTest

class Judge(WordsTest):
    classifiers = ("recurrent",)
"""


def test_who_is_trained_against_does_not_judge(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(RECURRENT)
    estimators = f"shift.estimators=[lengths,{tmp_path / 'judge.py'}:Judge]"
    load_config(MICRO, [estimators])
    with pytest.raises(
        UserError, match="trains the simulator against a recurrent classifier, and shift.estimators: .*Judge"
    ):
        load_config(MICRO, [estimators, f"calibration.method={PATHS[0]}"])
    (tmp_path / "method.py").write_text(
        "from calibrated_rl.calibration.plain import PlainSFT\nclass Mine(PlainSFT):\n    classifiers = ('forest',)\n"
    )
    with pytest.raises(UserError, match="against a forest classifier, and the two-sample test of every run fits one"):
        load_config(MICRO, [f"calibration.method={tmp_path / 'method.py'}:Mine"])


def test_every_classifier_that_evaluates_says_of_which_family_it_is() -> None:
    classes = [estimator_class(name) for name in short_names(ESTIMATORS)]
    testing = [cls for cls in classes if issubclass(cls, ReplyTest)]
    assert len(testing) >= 5 and all(cls.classifiers for cls in testing)
    for cls in classes:
        assert not set(Adversarial.classifiers).intersection(cls.classifiers)
