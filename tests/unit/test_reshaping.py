"""Sampling with something cut off or penalised: who may, and what is then left out because it is not known."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from calibrated_rl.calibration.ensemble import EnsembleSFT
from calibrated_rl.calibration.turing import Turing
from calibrated_rl.config.load import load_config
from calibrated_rl.config.sections import EvaluationConfig
from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.held_out import measure_simulator, probabilities_known, sampling_of
from calibrated_rl.inference.config import ReshapingConfig, SamplingConfig
from calibrated_rl.training import shift_watch
from tests.support.paths import MICRO

METHODS = "calibrated_rl.calibration"


def test_by_default_nothing_is_reshaped() -> None:
    assert SamplingConfig(temperature=0.7).reshaped == ()
    assert SamplingConfig(top_p=0.9, min_p=0.1).reshaped == ("top_p", "min_p")
    assert ReshapingConfig(top_k=20, repetition_penalty=1.1).reshaped == ("top_k", "repetition_penalty")
    for wrong in ({"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SamplingConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "message"), [
    (["policy.sampling.top_p=0.9"], r"policy.sampling.top_p is 0.9: .* would be biased; .*: evaluation.sampling.top_p"),
    (["policy.sampling.repetition_penalty=1.1"], "policy.sampling.repetition_penalty is 1.1"),
    (["simulator.sampling.top_k=9", f"calibration.method={METHODS}.turing:Turing"],
     "calibration.method learns by GRPO .* with simulator.sampling.top_k"),
    (["simulator.sampling.top_k=9", f"calibration.method={METHODS}.ensemble:EnsembleSFT"], "disagree on what each of"),
    (["simulator.sampling.min_p=0.1", "simulator.engine.args={spec_tokens: 2}"], "not take with speculative decoding"),
    (["evaluation.sampling.top_p=1.5"], "evaluation.sampling.top_p"),
])  # fmt: skip
def test_where_probabilities_are_needed_it_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, settings)


def test_a_saved_run_does_not_ignore_it_either() -> None:
    with pytest.raises(UserError, match="policy.sampling.top_k is 5"):
        load_config(MICRO, ["policy.sampling.top_k=5"], saved=True)


def test_simulators_and_evaluated_policies_may() -> None:
    config = load_config(MICRO, ["simulator.sampling={top_p: 0.9, min_p: 0.02}", "evaluation.sampling={top_p: 0.8}"])
    trained = SamplingConfig(temperature=0.7, max_turn_tokens=9)
    assert sampling_of(trained, config.evaluation.sampling, None) == SamplingConfig(
        temperature=0.7, max_turn_tokens=9, top_p=0.8
    )
    assert sampling_of(trained, EvaluationConfig().sampling, 0.0) == SamplingConfig(temperature=0.0, max_turn_tokens=9)
    for method in (Turing, EnsembleSFT):
        assert method.whole_distribution


class NotAsked:
    """A learner whose probabilities of human replies are not the simulator's."""

    def log_probs(self, *arguments: Any) -> Any:
        raise AssertionError("these are not the probabilities with which the simulator speaks")


def test_what_is_not_known_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(MICRO, ["simulator.sampling.top_p=0.9", "shift.draws=1"])
    nothing: Any = None
    logs: Any = {split: [] for split in Split}
    inputs: Any = SimpleNamespace(config=config, human=object(), task=object(), logs=logs, judge=None)
    models: Any = SimpleNamespace(local_simulator=object())
    measured = shift_watch.MeasuredDialogues(
        update=0, with_humans=None, with_user=None, by_simulator=True, human_dialogues=[], replies=None
    )
    learner: Any = NotAsked()
    assert shift_watch.collected(inputs, models, learner, nothing, measured).exact is None
    cluster: Any = SimpleNamespace(learner=learner, collector=None, simulator_user=None)
    estimated: Any = SimpleNamespace(accuracy=SimpleNamespace(as_dict=lambda: 0.5), tv=SimpleNamespace(by_turn=[]))
    monkeypatch.setattr("calibrated_rl.evaluation.held_out.answers", lambda *_: [])
    monkeypatch.setattr("calibrated_rl.evaluation.held_out.matched_with_humans", lambda *_: None)
    monkeypatch.setattr("calibrated_rl.evaluation.held_out.TwoSampleTest.measure", lambda *_: estimated)
    with caplog.at_level(logging.WARNING, "calibrated_rl"):
        metrics, _ = measure_simulator(inputs, models, cluster, (0.4, 0.6))
    assert set(metrics) == {"classifier_accuracy", "classifier_accuracy_acts", "tv_lower_bound_by_turn"}
    assert "simulator.sampling has top_p: the probability with which the simulator says" in caplog.text
    assert probabilities_known(load_config(MICRO, ["simulator.sampling.temperature=0.7"]))
