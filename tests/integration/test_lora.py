"""Adapters: exact against plain torch, nothing else changes, what is saved or sent is a model that does the same."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.lora import LoRAConfig, LoRALinear, check_targets, is_adapter
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.training.checkpoints import ArmCheckpoints
from calibrated_rl.weight_sync import merging
from calibrated_rl.weight_sync.lora import LoRAWeights, MergedWeights
from calibrated_rl.weight_sync.merging import _by_thresholds, arrived_change, merged_weight
from calibrated_rl.weight_sync.tensors import Weights
from tests.integration.test_arm_checkpoints import state
from tests.support.made_up_learners import ADAM, assert_same, big_epsilon, plain_log_probs, samples, sequences
from tests.support.made_up_models import make_model

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")
LORA = LoRAConfig(rank=4, alpha=8.0)
MERGED_BITS = 1080406374
"""Checksum of merged weights in a test below: they must not change, or checkpoints would mean other policies."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_model().save_pretrained(path)
    return path


def learner(folder: Path, lora: LoRAConfig = LORA, optimizer: OptimizerConfig = ADAM, **config: Any) -> LearnerRank:
    made = LearnerRank(LearnerConfig(**({"micro_batch_tokens": 128, "lora": {"policy": lora}} | config)))
    made.load("policy", folder, optimizer=optimizer)
    return made


def test_an_adapted_map_by_hand() -> None:
    plain = torch.nn.Linear(2, 3)
    plain.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    plain.bias.data = torch.tensor([0.0, 0.0, 5.0])
    adapted = LoRALinear(plain, LoRAConfig(rank=1, alpha=2.0), torch.Generator())
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(adapted(x), plain(x))
    adapted.lora_A.data, adapted.lora_B.data = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    # A x = 3; times alpha / rank = 2.
    assert adapted(x).tolist() == [[1.0 + 6.0, 2.0, 8.0 - 6.0]]


def drawn(out: int = 96, into: int = 64, rank: int = 4, size: float = 1e-4) -> tuple[torch.Tensor, ...]:
    """A bfloat16 weight and adapters whose change is about ``size`` of it, far below a step of bfloat16 (1/256)."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(out, into, generator=random).bfloat16()
    a = torch.randn(rank, into, generator=random) / rank**0.5
    return weight, a, size * torch.randn(out, rank, generator=random)


def test_a_change_below_a_step_of_bfloat16_arrives_on_average() -> None:
    weight, a, b = drawn(512, 256)
    wanted, along, off = arrived_change(weight, a, b, 1.0).tolist()
    assert along / wanted == pytest.approx(1, abs=0.1)
    nearest = (weight.double() + b.double() @ a.double()).bfloat16().double() - weight.double()
    assert abs(float((nearest * (b @ a)).sum()) / wanted) < 0.2, "what is gained"
    # Each weight is one of its two neighbours, and no change is none.
    change = merged_weight(weight, a, b, 1.0).float() - weight.float()
    assert (change.abs() <= weight.float().abs() / 128 + 1e-3).all() and 0 < (change != 0).float().mean() < 0.2
    assert torch.equal(merged_weight(weight, a, torch.zeros_like(b), 1.0), weight)
    assert off > 0


def test_thresholds_are_spread_evenly_and_stand_alone() -> None:
    exact = torch.full((256, 256), 1.0 + 1 / 256)  # half way between two numbers of bfloat16
    up = _by_thresholds(exact, 0).float() > 1.0
    assert up.float().mean() == pytest.approx(0.5, abs=0.01)
    for sums in (up.float().mean(0), up.float().mean(1)):
        assert sums.std() == pytest.approx((0.25 / 256) ** 0.5, rel=0.25), "rows or columns hang together"
    centred = up.float() - 0.5
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 0.005
    assert torch.linalg.matrix_norm(centred, 2) < 2.5 * 256**0.5 * 0.5, "as large as drawn ones have"


def test_the_same_bits_on_every_machine_and_at_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(96 * 64) * 7919 % 1009 / 509 - 1
    weight, a, b = numbers.view(96, 64).bfloat16(), numbers[:256].view(4, 64), numbers[:384].view(96, 4) / 100
    expected = merged_weight(weight, a, b, 2.0)
    assert zlib.crc32(expected.view(torch.int16).numpy().tobytes()) == MERGED_BITS
    for threads, at_once in ((1, 64), (2, 1 << 20), (2, 700)):
        torch.set_num_threads(threads)
        monkeypatch.setitem(merging.CHUNK_ELEMENTS, "cpu", at_once)
        assert torch.equal(merged_weight(weight, a, b, 2.0), expected)


def test_a_bfloat16_map_is_that_of_the_merged_weights_with_the_gradients_of_the_exact_one() -> None:
    weight, a, b = drawn(size=0.05)
    plain = torch.nn.Linear(64, 96, dtype=torch.bfloat16)
    plain.weight.data = weight
    adapted = LoRALinear(plain, LoRAConfig(rank=4, alpha=8.0), torch.Generator())
    assert adapted.lora_A.dtype == adapted.lora_B.dtype == torch.float32
    adapted.requires_grad_(False)
    adapted.lora_A.data, adapted.lora_B.data = a, b
    for parameter in (adapted.lora_A, adapted.lora_B):
        parameter.requires_grad_()
    x = torch.randn(2, 7, 64, dtype=torch.bfloat16, requires_grad=True)
    y, by_y = adapted(x), torch.randn(2, 7, 96, dtype=torch.bfloat16)
    # torch's own: a rank of another test may have put DeepSpeed's in its place, which rounds before it adds the bias.
    assert torch.equal(y, torch._C._nn.linear(x, merged_weight(weight, a, b, 2.0), plain.bias))
    y.backward(by_y)
    exact_a, exact_b = a.double().requires_grad_(), b.double().requires_grad_()
    (x.double().detach() @ (2.0 * exact_b @ exact_a).t() * by_y.double()).sum().backward()
    torch.testing.assert_close(adapted.lora_A.grad.double(), exact_a.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapted.lora_B.grad.double(), exact_b.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, by_y @ merged_weight(weight, a, b, 2.0))


@pytest.mark.parametrize("stage", [0, 3])
def test_under_bfloat16_engines_get_the_weights_that_the_learner_computes_with(folder: Path, stage: int) -> None:
    """At a learning rate that moves no weight to the nearest number: the update arrives, and the same on both sides."""
    made = learner(folder, optimizer=OptimizerConfig(learning_rate=1e-5), dtype="bfloat16", zero_stage=stage)
    batch = SampleBatch.of_sequences(sequences())
    before = made.score("policy", batch)[0]
    for _ in range(3):
        made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    error = made.merge_error("policy")
    assert error["merge_arrived"] == pytest.approx(1, abs=0.5) and error["merge_error"] > 1
    sent = dict(MergedWeights(made.full_weights("policy"), made.lora_weights("policy"), with_unchanged=True))
    model = make_model().bfloat16()
    model.load_state_dict(sent, strict=False)
    served = LearnerRank(LearnerConfig(micro_batch_tokens=128, dtype="bfloat16"))
    model.save_pretrained(folder.parent / f"served-{stage}")
    served.load("policy", folder.parent / f"served-{stage}", trainable=False)
    now = made.score("policy", batch)[0]
    np.testing.assert_array_equal(now, served.score("policy", batch)[0])
    assert np.nanmax(np.abs(now - before)) > 0, "the update does not arrive"
    assert made.models["policy"].adapters().popitem()[1].dtype == torch.float32


def test_merged_weights_by_hand() -> None:
    base = Weights({
        "embed.weight": torch.ones(2, 2), "layers.0.mlp.up.weight": torch.eye(2), "layers.0.mlp.up.bias": torch.ones(2),
        "layers.0.mlp.down.weight": torch.zeros(2, 2), "layers.0.norm.weight": torch.ones(2),
    })  # fmt: skip
    factors = Weights({
        "layers.0.mlp.up.lora_A": torch.tensor([[1.0, 2.0]]), "layers.0.mlp.up.lora_B": torch.tensor([[1.0], [0.0]]),
    })  # fmt: skip
    merged = MergedWeights(base, LoRAWeights(factors, 0.5), with_unchanged=True)
    assert list(merged) == list(base)
    assert merged["layers.0.mlp.up.weight"].tolist() == [[1.5, 1.0], [0.0, 1.0]]
    assert merged.content("layers.0.mlp.up.weight").view(np.float32).tolist() == [1.5, 1.0, 0.0, 1.0]
    assert all(torch.equal(merged[name], base[name]) for name in base if name != "layers.0.mlp.up.weight")
    # What an engine may hold in one matrix with it goes along.
    assert list(MergedWeights(base, LoRAWeights(factors, 0.5), with_unchanged=False)) == [
        "layers.0.mlp.up.weight", "layers.0.mlp.up.bias", "layers.0.mlp.down.weight"
    ]  # fmt: skip


def test_training_begins_at_the_model_and_changes_adapters_alone(folder: Path) -> None:
    made, batch = learner(folder), SampleBatch.of_sequences(sequences())
    before, _ = made.score("policy", batch)
    for values, tokens in zip(batch.split(before), sequences(), strict=True):
        np.testing.assert_allclose(values, plain_log_probs(folder, tokens), atol=1e-5)
    first = made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))["loss"]
    for _ in range(20):
        last = made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))["loss"]
    assert last < first - 0.05
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, stored[name]) for name, weight in made.weights("policy").items())
    adapters = made.models["policy"].adapters()
    assert len(adapters) == 2 * 2 * 7 and all(is_adapter(name) and value.any() for name, value in adapters.items())


def test_one_step_equals_plain_torch(folder: Path) -> None:
    """With a large epsilon AdamW's first step is nearly linear in the gradient, so that this compares gradients."""
    optimizer, batch = big_epsilon(max_grad_norm=1e9), samples(3)
    made = learner(folder, optimizer=optimizer)
    model = make_model()
    start = {name: value.clone().requires_grad_() for name, value in made.models["policy"].adapters().items()}
    made.step("policy", SampleBatch.of(batch), SFT(SFT.Config()))

    weights = dict(model.named_parameters())
    for name in start:
        if name.endswith("lora_A"):
            module = name.removesuffix(".lora_A")
            delta = start[f"{module}.lora_B"] @ start[name]
            weights[f"{module}.weight"] = weights[f"{module}.weight"].detach() + LORA.scale * delta
    total, count = torch.zeros(()), 0
    for sample in batch:
        ids = torch.from_numpy(sample.tokens.ids).long()
        logs = torch.func.functional_call(model, weights, (ids[None],)).logits[0].log_softmax(-1)
        mask = torch.from_numpy(sample.tokens.mask[1:])
        total = total - sample.weight * logs[:-1].gather(-1, ids[1:, None])[:, 0][mask].sum()
        count += int(mask.sum())
    (total / count).backward()
    settings = {"lr": optimizer.learning_rate, "eps": optimizer.epsilon, "weight_decay": 0.0}
    torch.optim.AdamW(start.values(), betas=(optimizer.beta1, optimizer.beta2), **settings).step()
    for name, value in made.models["policy"].adapters().items():
        torch.testing.assert_close(value, start[name].detach(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("stage", [1, 3])
def test_zero_stages_agree(folder: Path, stage: int) -> None:
    plain, sharded = learner(folder), learner(folder, zero_stage=stage)
    for _ in range(3):
        metrics = [made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config())) for made in (plain, sharded)]
    assert_same((metrics[0], plain.models["policy"].adapters()), (metrics[1], sharded.models["policy"].adapters()))


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "float32"), (1, "bfloat16"), (3, "float32")])
def test_a_checkpoint_continues_the_same_run(folder: Path, tmp_path: Path, stage: int, dtype: str) -> None:
    made = learner(folder, zero_stage=stage, dtype=dtype)
    made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    snapshot = made.snapshot()
    assert snapshot is not None
    snapshot.write(tmp_path / "kept")
    again = learner(folder, zero_stage=stage, dtype=dtype)
    again.restore(tmp_path / "kept")
    for each in (made, again):
        each.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    for name, value in made.models["policy"].adapters().items():
        assert torch.equal(value, again.models["policy"].adapters()[name]), name
    with pytest.raises(UserError, match=r"learner\.lora\.policy .*'rank': 4.* and it is None now"):
        LearnerRank(LearnerConfig(zero_stage=stage, dtype=dtype)).restore(tmp_path / "kept")


def test_a_checkpoint_of_adapters_in_bfloat16_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """As they were before adapters were float32."""
    made = learner(folder, dtype="bfloat16")
    snapshot = made.snapshot()
    assert snapshot is not None
    state = snapshot.tensors["policy.optimizer.safetensors"]
    state |= {f"master.{name}": value for name, value in made.models["policy"].adapters().items()}
    snapshot.write(tmp_path / "kept")
    with pytest.raises(UserError, match="adapters in bfloat16, and they are float32 now"):
        made.restore(tmp_path / "kept")


def test_a_saved_model_does_the_same(folder: Path, tmp_path: Path) -> None:
    made = learner(folder, LoRAConfig(rank=4, alpha=8.0, targets=["q_proj", "down_proj"]))
    for _ in range(5):
        made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    made.save("policy", tmp_path / "saved")
    batch = SampleBatch.of_sequences(sequences())
    for values, tokens in zip(batch.split(made.score("policy", batch)[0]), sequences(), strict=True):
        np.testing.assert_allclose(values, plain_log_probs(tmp_path / "saved", tokens), atol=2e-5)
        assert np.nanmax(np.abs(values - plain_log_probs(folder, tokens))) > 1e-3
    described = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["base_model_name_or_path"]) == (4, 8.0, str(folder))
    assert described["target_modules"] == ["down_proj", "q_proj"]
    stored = load_file(tmp_path / "saved" / "adapter" / "adapter_model.safetensors")
    kept = made.models["policy"].adapters()
    assert set(stored) == {f"base_model.model.{name}.weight" for name in kept} and len(kept) == 2 * 2 * 2
    assert all(torch.equal(stored[f"base_model.model.{name}.weight"], value) for name, value in kept.items())


def test_the_best_policy_of_an_arm_has_its_adapters(folder: Path, tmp_path: Path) -> None:
    made = learner(folder)
    for _ in range(5):
        made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    snapshot = made.snapshot()
    assert snapshot is not None
    arm = ArmCheckpoints(tmp_path, "calibrated", 0, 2)
    arm.save(state(5, 0.5), {}, snapshot.write)
    arm.finish()
    batch = SampleBatch.of_sequences(sequences())
    for values, tokens in zip(batch.split(made.score("policy", batch)[0]), sequences(), strict=True):
        np.testing.assert_allclose(values, plain_log_probs(arm.best_policy, tokens), atol=2e-5)
    check_checksums(arm.best_policy)


def test_adapters_name_their_base_after_a_checkpoint_too(folder: Path, tmp_path: Path) -> None:
    snapshot = learner(folder).snapshot()
    assert snapshot is not None
    snapshot.write(tmp_path / "kept")
    again = learner(tmp_path / "kept" / "policy")
    again.restore(tmp_path / "kept")
    again.save("policy", tmp_path / "saved")
    described = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(folder)


def test_what_is_sent_does_the_same(folder: Path) -> None:
    made = learner(folder)
    made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    adapters = made.lora_weights("policy")
    merged = dict(MergedWeights(made.full_weights("policy"), adapters, with_unchanged=True))
    assert adapters.scale == 2.0 and made.check("policy")
    model = make_model()
    model.load_state_dict(merged, strict=False)
    batch = SampleBatch.of_sequences(sequences())
    for values, tokens in zip(batch.split(made.score("policy", batch)[0]), sequences(), strict=True):
        with torch.no_grad():
            ids = torch.from_numpy(tokens.ids).long()
            logs = model(ids[None]).logits[0].log_softmax(-1)
        expected = logs[:-1].gather(-1, ids[1:, None])[:, 0].numpy()[tokens.mask[1:]]
        np.testing.assert_allclose(values[1:][tokens.mask[1:]], expected, atol=1e-5)


def test_frozen_models_and_those_trained_whole_have_no_adapters(folder: Path) -> None:
    made = learner(folder)
    for options in ({"trainable": False}, {"full_finetuning": True}):
        made.load("policy", folder, **options)
        assert not made.check("policy")


def test_users_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no linear map 'query'; it has .*q_proj"):
        learner(folder, LoRAConfig(targets=["query"]))
    with pytest.raises(UserError, match=r"no linear map 'q_porj'; it has .*did you mean 'q_proj'"):
        check_targets(folder, LoRAConfig(targets=["q_porj"]))
    check_targets(folder, LoRAConfig(targets=["q_proj"]))
    with pytest.raises(UserError, match=r"'learner.lora.user': choose policy, simulator or proxy"):
        LearnerConfig(lora={"user": LORA})
    with pytest.raises(UserError, match="rank is 0"):
        LoRAConfig(rank=0)
