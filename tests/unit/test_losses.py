"""Losses, correction and advantages against values worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.errors import UserError
from calibrated_rl.learner.advantages.base import has_signal
from calibrated_rl.learner.advantages.checked import build_advantage, group_advantages
from calibrated_rl.learner.losses.base import Loss, LossInputs, Totals
from calibrated_rl.learner.losses.check import check_policy_loss, resolve_loss
from calibrated_rl.learner.losses.cispo import CISPO
from calibrated_rl.learner.losses.correction import Correction
from calibrated_rl.learner.losses.dpo import DPO
from calibrated_rl.learner.losses.dr_grpo import DrGRPO
from calibrated_rl.learner.losses.grpo import GRPO
from calibrated_rl.learner.losses.gspo import GSPO
from calibrated_rl.learner.losses.policy import ESTIMATORS, PolicyLoss, k3
from calibrated_rl.learner.losses.reinforce import Reinforce
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.metrics import Sums, collect

OLD = -1.0
RATIOS = [1.5, 0.5, 1.0]
"""Two tokens of a first sequence (advantage 1), one of a second (advantage −2)."""


def inputs(
    ratios: list[float] | None = None,
    advantages: list[float] | None = None,
    sequence: list[int] | None = None,
    **changes: Any,
) -> LossInputs:
    ratios = RATIOS if ratios is None else ratios
    sequence = [0, 0, 1] if sequence is None else sequence
    now = (OLD + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    old = torch.full_like(now, OLD).detach()
    values: dict[str, Any] = {
        "logprobs": now,
        "entropy": torch.ones_like(old),
        "old_logprobs": old,
        "sampler_logprobs": old,
        "reference_logprobs": None,
        "advantages": torch.tensor([1.0, 1.0, -2.0] if advantages is None else advantages).double(),
        "weights": torch.ones_like(old),
        "sequence": torch.tensor(sequence),
        "count": max(sequence) + 1,
        "totals": Totals(tokens=len(ratios), sequences=max(sequence) + 1, weight=float(len(ratios))),
    }
    return LossInputs(**(values | changes))


def value_and_gradient(loss: Loss, given_inputs: LossInputs) -> tuple[float, list[float]]:
    value = loss(given_inputs).loss
    value.backward()
    assert given_inputs.logprobs.grad is not None
    return float(value.detach()), given_inputs.logprobs.grad.tolist()


def test_grpo_token_mean_and_clipped_gradient() -> None:
    value, gradient = value_and_gradient(GRPO(GRPO.Config()), inputs())
    # min(1.5, 1.2) = 1.2; min(0.5, 0.8) = 0.5; −2
    assert value == pytest.approx(-(1.2 + 0.5 - 2.0) / 3)
    # d/dlogπ of ρA is ρA where it is not clipped.
    assert gradient == pytest.approx([0.0, -0.5 / 3, 2.0 / 3])


def test_grpo_sequence_mean_and_clip_higher() -> None:
    value, _ = value_and_gradient(GRPO(GRPO.Config(aggregation="sequence", clip_high=0.4)), inputs())
    assert value == pytest.approx(-((1.4 + 0.5) / 2 - 2.0) / 2)


def test_grpo_counts_what_it_clipped() -> None:
    output = GRPO(GRPO.Config())(inputs([1.5, 0.5, 0.5], [1.0, 1.0, -1.0]))
    assert [float(output.means[f"clip_{side}_share"][0]) for side in ("high", "low")] == [1.0, 1.0]
    assert output.means["clip_high_share"][1] == 3.0


def test_kl_and_entropy_terms() -> None:
    reference = torch.full((3,), OLD + math.log(2.0), dtype=torch.float64)
    given_inputs = inputs([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], reference_logprobs=reference)
    value = GRPO(GRPO.Config(kl_coefficient=0.1, entropy_coefficient=0.01))(given_inputs).loss
    # d = log 2: e^d − 1 − d = 1 − log 2; the entropy is 1.
    assert float(value.detach()) == pytest.approx(0.1 * (1 - math.log(2)) - 0.01)


def test_dr_grpo_divides_by_a_constant() -> None:
    value, _ = value_and_gradient(DrGRPO(DrGRPO.Config(max_tokens=10)), inputs())
    assert value == pytest.approx(-(1.2 + 0.5 - 2.0) / (2 * 10))


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    value, gradient = value_and_gradient(CISPO(CISPO.Config(clip_high=0.2)), inputs())
    logs = [OLD + math.log(r) for r in RATIOS]
    assert value == pytest.approx(-(1.2 * logs[0] + 0.5 * logs[1] - 2.0 * logs[2]) / 3)
    assert gradient == pytest.approx([-1.2 / 3, -0.5 / 3, 2.0 / 3])


def test_gspo_takes_one_ratio_a_sequence() -> None:
    value, gradient = value_and_gradient(GSPO(GSPO.Config(clip_low=0.2, clip_high=0.2)), inputs())
    ratio = math.sqrt(1.5 * 0.5)
    assert value == pytest.approx(-(ratio - 2.0) / 2)
    assert gradient == pytest.approx([-ratio / 4, -ratio / 4, 1.0])


def test_reinforce_sums_over_tokens() -> None:
    value, gradient = value_and_gradient(Reinforce(Reinforce.Config()), inputs())
    logs = [OLD + math.log(r) for r in RATIOS]
    assert value == pytest.approx(-(1.5 * logs[0] + 0.5 * logs[1] - 2 * logs[2]) / 2)
    assert gradient == pytest.approx([-0.75, -0.25, 1.0])


def test_sft_divides_weighted_tokens_by_their_number() -> None:
    weights = torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64)
    totals = Totals(tokens=3, sequences=2, weight=4.0)
    value, gradient = value_and_gradient(SFT(SFT.Config()), inputs(weights=weights, totals=totals))
    assert value == pytest.approx(-(OLD + math.log(1.5) + 3 * (OLD + math.log(0.5))) / 3)
    assert gradient == pytest.approx([-1 / 3, -1.0, 0.0])


def test_dpo_compares_sums_over_pairs() -> None:
    reference = torch.full((3,), OLD, dtype=torch.float64)
    output = DPO(DPO.Config(beta=0.5))(inputs(reference_logprobs=reference))
    margin = 0.5 * (math.log(0.75) - 0.0)
    assert float(output.loss) == pytest.approx(math.log1p(math.exp(-margin)))
    assert float(output.means["preference_accuracy"][0]) == 0.0


def test_dpo_adds_the_likelihood_of_the_chosen_sequence_by_its_length() -> None:
    """The first sequence, of two tokens, is the chosen one."""
    reference = torch.full((3,), OLD, dtype=torch.float64)
    plain, gradient = value_and_gradient(DPO(DPO.Config(beta=0.5)), inputs(reference_logprobs=reference))
    loss = DPO(DPO.Config(beta=0.5, sft_coefficient=3.0))
    value, with_likelihood = value_and_gradient(loss, inputs(reference_logprobs=reference))
    assert value == pytest.approx(plain - 3.0 * (2 * OLD + math.log(0.75)) / 2)
    assert with_likelihood == pytest.approx([gradient[0] - 1.5, gradient[1] - 1.5, gradient[2]])


def test_dpo_of_a_pair_of_weight_0_prefers_nothing_and_learns_the_chosen_sequence() -> None:
    reference, zeros = torch.full((3,), OLD, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    loss = DPO(DPO.Config(beta=0.5, sft_coefficient=3.0))
    value, gradient = value_and_gradient(loss, inputs(reference_logprobs=reference, weights=zeros))
    assert value == pytest.approx(-3.0 * (2 * OLD + math.log(0.75)) / 2)
    assert gradient == pytest.approx([-1.5, -1.5, 0.0])
    halves = loss(inputs(reference_logprobs=reference, weights=zeros + 0.5))
    total, count = halves.means["preference_margin"]
    assert float(count) == 0.5 and float(total) / 0.5 == pytest.approx(0.5 * math.log(0.75))


def test_truncated_importance_weights() -> None:
    correction = Correction(Correction.Config(mode="truncate", high=2.0))
    old, sampler = torch.zeros(3), -torch.tensor([0.5, 1.0, 4.0]).log()
    assert correction.weights(old, sampler).tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert correction.accepted(old, sampler).all()


def test_masked_importance_weights_reject_on_both_sides() -> None:
    correction = Correction(Correction.Config(mode="mask", low=0.5, high=2.0))
    old, sampler = torch.zeros(4), -torch.tensor([0.4, 0.6, 1.9, 2.1]).log()
    assert correction.accepted(old, sampler).tolist() == [False, True, True, False]
    assert correction.weights(old, sampler)[1:3].tolist() == pytest.approx([0.6, 1.9])


@pytest.mark.parametrize("kind", [GRPO, DrGRPO, CISPO, GSPO, Reinforce])
def test_importance_weight_scales_the_surrogate(kind: type[PolicyLoss]) -> None:
    sampler = torch.full((3,), OLD - math.log(1.5), dtype=torch.float64)
    corrected = kind(kind.Config())(inputs(sampler_logprobs=sampler)).loss
    plain = kind(kind.Config())(inputs()).loss
    assert float(corrected.detach()) == pytest.approx(1.5 * float(plain.detach()))


@pytest.mark.parametrize("kind", [GRPO, DrGRPO, CISPO, GSPO, Reinforce, SFT])
def test_micro_batches_add_up(kind: Any) -> None:
    """Sequence by sequence or all at once: same loss, same metrics, because totals are global."""
    loss = kind(kind.Config())
    whole = inputs()
    whole_output = loss(whole)
    parts = [
        inputs([1.5, 0.5], [1.0, 1.0], [0, 0], totals=whole.totals),
        inputs([1.0], [-2.0], [0], totals=whole.totals),
    ]
    outputs = [loss(part) for part in parts]
    assert float(sum(o.loss for o in outputs)) == pytest.approx(float(whole_output.loss), abs=1e-12)
    sums = Sums()
    for part, output in zip(parts, outputs, strict=True):
        sums.add(collect(part, output, loss))
    whole_sums = collect(whole, whole_output, loss)
    assert sums.results() == pytest.approx(whole_sums.results(), abs=1e-12)


def test_effective_sample_share_by_hand() -> None:
    sampler = OLD - torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64).log()
    given_inputs = inputs([1.0, 1.0, 1.0], sampler_logprobs=sampler)
    loss = GRPO(GRPO.Config())
    results = collect(given_inputs, loss(given_inputs), loss).results()
    assert results["effective_sample_share"] == pytest.approx(6.0**2 / (3 * 18))
    assert results["mismatch_max"] == pytest.approx(math.log(4))
    assert results["mismatch_mean"] == pytest.approx(math.log(4) / 3)
    assert results["kl_sampler_k1"] == pytest.approx(-math.log(4) / 3)
    assert results["kl_sampler_k3"] == pytest.approx((3 - math.log(4)) / 3)


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_k3_is_never_negative(a: float, b: float) -> None:
    assert float(k3(torch.tensor(a).double(), torch.tensor(b).double())) >= -1e-12


def test_k3_is_unbiased() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    assert float((p * k3(q.log(), p.log())).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


WORDS = torch.tensor([[0.4, -1.0, 0.9, 0.0], [-0.5, 0.3, 1.2, 0.1], [0.0, 0.5, -0.2, 0.9], [0.8, -0.3, 0.4, -0.9]])
"""Logits of four words: the policy now, the reference, the policy before the update, the engine that sampled."""


def penalty_by_enumeration(estimator: str, *, stale: bool) -> tuple[float, torch.Tensor]:
    """Value and gradient (by the logits of the policy now) of a loss that is its KL penalty alone, in expectation: each
    word stands once, and counts as often as the engine says it. Only with ``stale`` do the policies differ."""
    logits = WORDS[0].double().requires_grad_()
    now = torch.log_softmax(logits, 0)
    reference, old, sampler = torch.log_softmax(WORDS[1:].double(), 1)
    if not stale:
        old = sampler = now.detach()
    correction = Correction.Config(mode="truncate", high=1e9)
    loss = Reinforce(Reinforce.Config(kl_coefficient=1.0, kl_estimator=estimator, correction=correction))
    value, gradient = 0.0, torch.zeros(4).double()
    for word in range(4):
        one = slice(word, word + 1)
        given_inputs = inputs(
            [1.0], [0.0], [0], logprobs=now[one], old_logprobs=old[one], sampler_logprobs=sampler[one],
            reference_logprobs=reference[one],
        )  # fmt: skip
        output, chance = loss(given_inputs).loss, float(sampler[word].exp())
        value += chance * float(output.detach())
        gradient += chance * torch.autograd.grad(output, logits, retain_graph=True)[0]
    return value, gradient


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_kl_penalty_has_the_gradient_of_the_divergence(estimator: str, stale: bool) -> None:
    """Exact, by enumeration of a small softmax: that of KL(policy ‖ reference), also when others have sampled."""
    logits = WORDS[0].double().requires_grad_()
    now, reference = torch.log_softmax(logits, 0), torch.log_softmax(WORDS[1].double(), 0)
    divergence = (now.exp() * (now - reference)).sum()
    (expected,) = torch.autograd.grad(divergence, logits)
    value, gradient = penalty_by_enumeration(estimator, stale=stale)
    torch.testing.assert_close(gradient, expected)
    biased = float((now.exp() * (now - reference).square() / 2).sum().detach())
    assert value == pytest.approx(biased if estimator == "k2" else float(divergence.detach()))


def test_reinforce_weighs_for_the_steps_before() -> None:
    """Its gradient after a first step is that of the return under the policy now, although others have sampled."""
    logits = WORDS[0].double().requires_grad_()
    now, (_, old, sampler) = torch.log_softmax(logits, 0), torch.log_softmax(WORDS[1:].double(), 1)
    credit = torch.tensor([1.0, -0.5, 2.0, 0.3]).double()
    (expected,) = torch.autograd.grad(-(now.exp() * credit).sum(), logits, retain_graph=True)
    loss = Reinforce(Reinforce.Config(correction=Correction.Config(mode="truncate", high=1e9)))
    found = torch.zeros(4).double()
    for word in range(4):
        one = slice(word, word + 1)
        given_inputs = inputs(
            [1.0], [float(credit[word])], [0], logprobs=now[one], old_logprobs=old[one], sampler_logprobs=sampler[one]
        )  # fmt: skip
        found += sampler[word].exp() * torch.autograd.grad(loss(given_inputs).loss, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, expected)


def test_gspo_corrects_by_one_ratio_a_sequence() -> None:
    """Such that correction times ratio is the ratio of the policy now to the engine that sampled."""
    sampler = torch.tensor([OLD - 0.6, OLD + 0.1, OLD + 0.2], dtype=torch.float64)
    config = GSPO.Config(clip_low=1.0, clip_high=9.0, correction=Correction.Config(high=9.0))
    value, _ = value_and_gradient(GSPO(config), inputs(sampler_logprobs=sampler))
    first = math.exp((math.log(1.5) + math.log(0.5) + 0.6 - 0.1) / 2)
    assert value == pytest.approx(-(first - 2.0 * math.exp(-0.2)) / 2)
    truncated = GSPO(GSPO.Config(clip_low=1.0, clip_high=9.0, correction=Correction.Config(high=1.0)))
    value, _ = value_and_gradient(truncated, inputs(sampler_logprobs=sampler))
    assert value == pytest.approx(-(math.sqrt(0.75) - 2.0 * math.exp(-0.2)) / 2)


FITTING: dict[str, Any] = {"advantage": "dr_grpo", "minibatches": 4}


@pytest.mark.parametrize(
    ("loss", "settings", "changes", "message"),
    [
        (DrGRPO, {}, {"advantage": "grpo"}, "set training.advantage=dr_grpo"),
        (SFT, {}, {}, "no policy-gradient loss"),
        (DPO, {}, {}, "no policy-gradient loss"),
        (GRPO, {"clip_high": 0.28}, {"minibatches": 1}, "clip_high does nothing where training.minibatches is 1"),
        (GSPO, {"clip_low": 1e-4}, {"minibatches": 1}, "clip_low does nothing where training.minibatches is 1"),
        (GRPO, {"kl_estimator": "k1"}, {}, "kl_estimator does nothing where kl_coefficient is 0"),
        (CISPO, {"correction": {"low": 0.1}}, {}, "correction.low does nothing where correction.mode is truncate"),
        (GRPO, {"correction": {"mode": "none", "high": 3.0}}, {}, "correction.high does nothing"),
    ],
)
def test_settings_that_would_do_something_else_are_refused(
    loss: type[Loss], settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    made = resolve_loss((f"{loss.__module__}:{loss.__name__}", settings))
    with pytest.raises(UserError, match=message):
        check_policy_loss(made, settings, **(FITTING | changes))


@pytest.mark.parametrize(
    ("loss", "settings", "changes"),
    [
        (DrGRPO, {}, {}), (DrGRPO, {}, {"advantage": "rloo"}), (GRPO, {}, {"advantage": "grpo"}),
        (GRPO, {"clip_high": 0.28, "kl_coefficient": 0.1, "kl_estimator": "k1"}, {}),
        (GSPO, {}, {"minibatches": 1}), (CISPO, {"correction": {"mode": "mask", "low": 0.1}}, {}),
        (Reinforce, {"correction": {"mode": "none"}}, {"advantage": "rloo"}),
    ],
)  # fmt: skip
def test_settings_that_fit_are_not_refused(loss: type[Loss], settings: dict[str, Any], changes: dict[str, Any]) -> None:
    check_policy_loss(resolve_loss((f"{loss.__module__}:{loss.__name__}", settings)), settings, **(FITTING | changes))


def credit(rewards: list[float], kind: str) -> Any:
    return group_advantages(rewards, build_advantage(kind, {}))


def test_advantages_by_hand() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert credit(rewards, "dr_grpo").tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert credit(rewards, "rloo").tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    deviation = math.sqrt(3) / 4
    expected = [0.75 / deviation, *[-0.25 / deviation] * 3]
    assert credit(rewards, "grpo").tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("rewards", [[0.3] * 4, [1.0]])
def test_groups_without_variance_teach_nothing(kind: str, rewards: list[float]) -> None:
    assert not has_signal(rewards)
    np.testing.assert_array_equal(credit(rewards, kind), np.zeros(len(rewards), np.float32))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="aggregation"):
        GRPO(GRPO.Config(aggregation="mean"))
    with pytest.raises(UserError, match="correction.mode"):
        Correction(Correction.Config(mode="drop"))
    with pytest.raises(UserError, match="choose k1, k2 or k3"):
        GRPO(GRPO.Config(kl_estimator="k4"))
    for name, value in (("clip_low", 1.5), ("clip_low", 0.0), ("clip_high", -0.1), ("kl_coefficient", math.nan)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            GRPO(GRPO.Config(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="entropy_coefficient is -0.1"):
        CISPO(CISPO.Config(entropy_coefficient=-0.1))
    with pytest.raises(UserError, match="beta is 0"):
        DPO(DPO.Config(beta=0.0))
    with pytest.raises(UserError, match="there is no advantage 'ppo'; there are dr_grpo, gae, grpo, "):
        build_advantage("ppo", {})
    with pytest.raises(UserError, match="not a loss"):
        resolve_loss(("calibrated_rl.learner.losses.correction:Correction", {}))


def test_loss_by_import_path_with_nested_config() -> None:
    settings = {"clip_high": 0.28, "correction": {"mode": "mask", "high": 5.0}}
    loss = resolve_loss(("calibrated_rl.learner.losses.grpo:GRPO", settings))
    assert isinstance(loss, GRPO) and loss.config.clip_high == 0.28
    assert loss.correction is not None and loss.correction.rejects
    with pytest.raises(UserError, match="clip_high"):
        resolve_loss(("calibrated_rl.learner.losses.grpo:GRPO", {"clip_hihg": 0.28}))
