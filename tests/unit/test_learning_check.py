"""Settings that a policy cannot be trained with are refused before anything starts."""

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.training.accounts import why_nothing_was_learned
from tests.support.paths import MICRO

LOSSES = "calibrated_rl.learner.losses"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["policy.sampling.temperature=0"], "policy.sampling.temperature is 0.*a greedy setting of its own"),
        (["simulator.sampling.temperature=0"], "simulator.sampling.temperature is 0"),
        ([f"training.loss={LOSSES}.dr_grpo:DrGRPO"], "set training.advantage=dr_grpo"),
        ([f"training.loss={LOSSES}.sft:SFT"], "SFT is no policy-gradient loss"),
        (["training.minibatches=1", "training.loss_config.clip_high=0.3"], "training.minibatches is 1"),
        (["training.loss_config.clip_low=1.5"], "clip_low is 1.5"),
        (["training.loss_config.kl_estimator=k4"], "kl_estimator is 'k4'"),
        (["training.loss_config.clip_hihg=0.3"], "did you mean 'training.loss_config.clip_high'"),
        (["policy.warm_start.epochs=0"], "policy.warm_start.epochs is 0.*calibration.method_config.folds=2"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, settings)
    if "clip_hihg" not in settings[-1]:
        load_config(MICRO, settings, saved=True)  # to be judged, it need not be trained


@pytest.mark.parametrize(
    "settings",
    [["calibration.method_config.folds=2"], ["calibration.every=0"], ["calibration.every=30"],
     ["arms=[start,interactive,calibrated_once]"], ["calibration.method=calibrated_rl.calibration.plain:PlainSFT"]],
)  # fmt: skip
def test_a_start_that_is_no_clone_is_refused_only_where_logs_are_weighted_by_it(settings: list[str]) -> None:
    load_config(MICRO, ["policy.warm_start.epochs=0", *settings])


def test_an_update_without_a_step_says_why() -> None:
    assert "no step was finite" in why_nothing_was_learned({"skipped_steps": 4.0, "masked_share": 0.1})
    assert "rejected every token" in why_nothing_was_learned({"skipped_steps": 0.0, "masked_share": 1.0})
    assert why_nothing_was_learned({"skipped_steps": 0.0, "masked_share": 0.0}) == "no token of the policy"
