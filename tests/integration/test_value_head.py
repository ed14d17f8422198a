"""A value head on a tiny random Llama: exact against plain transformers, unseen by engines, fitted with early stops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.value_fit import VALUE_LOSS, fit_value_head
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LoRAConfig, OptimizerConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.value_head import FILE, PREFIX, read_at
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.turn_values.base import TurnValueInputs, explained, logged_turns
from calibrated_rl.turn_values.value_head import ValueHead
from calibrated_rl.weight_sync.object_store import full_weights
from tests.support.made_up_learners import LocalLearner, learner, save_model, sequences
from tests.support.made_up_models import make_model
from tests.support.scored_logs import SAID, log

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")
PLAIN = OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def samples(count: int = 12, seed: int = 0) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [
        Sample(tokens=read_at(tokens, tokens.mask), targets=random.normal(0, 1, len(tokens) + 1).astype(np.float32))
        for tokens in sequences(count, seed)
    ]


def critic(folder: Path, optimizer: OptimizerConfig = PLAIN, **config: Any) -> LearnerRank:
    made = learner(folder, **config)
    made.load("policy", folder, optimizer=optimizer, value_head=True)
    return made


class Plain(torch.nn.Module):
    """The same by transformers alone, one sequence after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.value_head = torch.nn.Linear(self.model.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """Values before the masked tokens, and their targets."""
        ids = torch.from_numpy(sample.tokens.ids).long()[None]
        hidden = self.model(ids, output_hidden_states=True).hidden_states[-1][0]
        masked = torch.from_numpy(np.flatnonzero(sample.tokens.mask))
        assert sample.targets is not None
        return self.value_head(hidden)[masked - 1, 0], torch.from_numpy(sample.targets)[masked]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_equal_plain_torch(tmp_path: Path, stage: int, tied: bool) -> None:
    """Four steps of AdamW: values, gradients of the head and of the model below it. Untied, the vocabulary projection
    stays as it was."""
    make_model(tied).save_pretrained(tmp_path)
    made, plain, batch = critic(tmp_path, zero_stage=stage), Plain(tmp_path), SampleBatch.of(samples())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(4):
        outputs = [plain(sample) for sample in samples()]
        values, targets = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        np.testing.assert_allclose(made.score("policy", batch)[0][batch.scored], values.detach().numpy(), atol=2e-5)
        loss = (values - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None])
        optimizer.step()
        metrics = made.step("policy", batch, VALUE_LOSS)
        assert metrics["loss"] == pytest.approx(metrics["value_error"]) == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        assert "nll" not in metrics and "entropy" not in metrics
    found = made.weights("policy") | made.models["policy"].value_head()
    expected = {n.removeprefix("model."): p for n, p in plain.named_parameters()}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].detach(), atol=3e-5, rtol=0, msg=name)


def test_a_new_head_predicts_zero_and_a_frozen_one_is_not_trained(folder: Path) -> None:
    batch = SampleBatch.of(samples())
    made = critic(folder)
    assert (made.score("policy", batch)[0][batch.scored] == 0).all()
    made.load("frozen", folder, trainable=False, value_head=True)
    assert (made.score("frozen", batch)[0][batch.scored] == 0).all()


def test_engines_and_readers_of_the_model_see_no_head(folder: Path, tmp_path: Path) -> None:
    """What is sent, and what is saved in Hugging Face format, is what it is without the head, by name and shape."""
    made = critic(folder)
    made.load("simulator", folder, optimizer=PLAIN)
    made.step("policy", SampleBatch.of(samples()), VALUE_LOSS)
    with_head, without = (made.models[name] for name in ("policy", "simulator"))
    assert with_head.shapes() == without.shapes()
    assert [name for name, _ in with_head.on_device()] == [name for name, _ in without.on_device()]
    assert list(full_weights(with_head)) == list(full_weights(without))
    made.save("policy", tmp_path / "saved")
    made.save("simulator", tmp_path / "plain")
    names = [set(load_file(tmp_path / saved / "model.safetensors")) for saved in ("saved", "plain")]
    assert names[0] == names[1] and not [name for name in names[0] if PREFIX in name]


def test_a_saved_head_comes_back(folder: Path, tmp_path: Path) -> None:
    made, batch = critic(folder), SampleBatch.of(samples())
    for _ in range(3):
        made.step("policy", batch, VALUE_LOSS)
    made.save("policy", tmp_path / "saved")
    assert (tmp_path / "saved" / FILE).is_file()
    made.load("frozen", tmp_path / "saved", trainable=False, value_head=True)
    np.testing.assert_array_equal(made.score("frozen", batch)[0], made.score("policy", batch)[0])


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (3, "float32")])
def test_a_checkpoint_has_the_head(folder: Path, tmp_path: Path, stage: int, dtype: str) -> None:
    batch = SampleBatch.of(samples())
    made = critic(folder, zero_stage=stage, dtype=dtype)
    made.step("policy", batch, VALUE_LOSS)
    snapshot = made.snapshot()
    assert snapshot is not None
    snapshot.write(tmp_path / "checkpoint")
    expected = [made.step("policy", batch, VALUE_LOSS) for _ in range(2)]
    resumed = learner(folder, zero_stage=stage, dtype=dtype)
    resumed.restore(tmp_path / "checkpoint")
    assert [resumed.step("policy", batch, VALUE_LOSS) for _ in range(2)] == expected


def test_adapters_and_the_head_are_trained_together(folder: Path, tmp_path: Path) -> None:
    batch = SampleBatch.of(samples())
    made = critic(folder, lora={"policy": LoRAConfig(rank=4)})
    before = made.weights("policy")
    errors = [made.step("policy", batch, VALUE_LOSS, learning_rate=1e-2)["value_error"] for _ in range(20)]
    assert errors[-1] < 0.8 * errors[0]
    assert all(torch.equal(value, before[name]) for name, value in made.weights("policy").items())
    made.save("policy", tmp_path / "saved")
    made.load("frozen", tmp_path / "saved", trainable=False, value_head=True)
    np.testing.assert_allclose(made.score("frozen", batch)[0], made.score("policy", batch)[0], atol=1e-5)


def test_losses_that_do_not_go_with_the_model_are_refused(folder: Path) -> None:
    made, batch = critic(folder), SampleBatch.of(samples())
    with pytest.raises(UserError, match="the loss SFT trains log-probs, and the model has a value head"):
        made.step("policy", batch, SFT(SFT.Config()))
    with pytest.raises(UserError, match="needs samples with targets"):
        made.step("policy", SampleBatch.of_sequences(sequences()), VALUE_LOSS)
    made.load("policy", folder)
    with pytest.raises(UserError, match="ValueRegression trains models with a value head, and the model has none"):
        made.step("policy", batch, VALUE_LOSS)


def test_a_target_that_is_not_finite_stops_the_step(folder: Path) -> None:
    broken = samples()
    assert broken[3].targets is not None
    broken[3].targets[:] = np.nan
    made = critic(folder)
    assert made.step("policy", SampleBatch.of(broken), VALUE_LOSS)["skipped_steps"] == 1
    assert made.skipped()[0].reason == "targets" and made.skipped()[0].sequences == (3,)


def test_the_fit_keeps_the_epoch_that_is_best_on_the_monitor_logs(folder: Path, tmp_path: Path) -> None:
    """Targets are noise: the fit learns them by heart, and other targets are predicted worse and worse."""
    local: Any = LocalLearner(learner(folder))
    train, monitor = samples(4), samples(8, seed=5)
    sft = SFTConfig(epochs=30, batch_dialogues=4, learning_rate=1e-2, warmup_steps=0, patience=3, decay=False)
    result = fit_value_head(local, "policy", folder, train, monitor, sft, tmp_path / "fit", 0)
    assert 3 <= result["epochs"] < 30 and result["error_after"] <= result["error_before"]

    def error(slot: str) -> float:
        values = local.values(slot, [sample.tokens for sample in monitor])
        pairs = [
            (found[sample.tokens.mask], sample.targets[sample.tokens.mask])
            for found, sample in zip(values, monitor, strict=True) if sample.targets is not None
        ]  # fmt: skip
        found, targets = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return float(((found - targets) ** 2).mean())

    assert error("policy") == pytest.approx(result["error_after"], rel=1e-5)
    local.load("frozen", tmp_path / "fit", trainable=False, value_head=True)
    assert error("frozen") == pytest.approx(result["error_after"], rel=1e-5)


@pytest.mark.parametrize("folds", [3, 1])
def test_no_history_is_valued_by_a_model_that_has_seen_its_dialogue(tmp_path: Path, folds: int) -> None:
    """What a user says gives each return away, and nothing else does: the models know by heart what they were fitted
    to. A single one does so of all logs."""
    random = np.random.default_rng(3)
    logs = [log(number, float(random.integers(2)), SAID[0]) for number in range(40)]
    folder = make_tiny(tmp_path / "base", [turn.text for made in logs for turn in made.turns], 0, layers=1)
    chat = ChatTokens(read_tokenizer(folder, "policy"), "policy")
    local: Any = LocalLearner(learner(folder))

    def fit(name: str, train: Any, monitor: Any, sft: SFTConfig) -> Path:
        fit_value_head(local, "policy", folder, train, train, sft, tmp_path / name, 0)
        return tmp_path / name

    pace = SFTConfig(
        epochs=60 if folds == 1 else 20,
        batch_dialogues=8,
        learning_rate=2e-3,
        warmup_steps=10,
        decay=False,
        patience=60,
    )
    method = ValueHead(ValueHead.Config(folds=folds, fit=pace))
    value = method.fit(
        TurnValueInputs(logs=logs, monitor=logs, tuning=logs, chat=chat, learner=local, fit_value_head=fit)
    )
    cases, returns = logged_turns(logs)
    of_cases = value.value(cases)
    assert value.explained(logs) == pytest.approx(explained(of_cases, returns), abs=1e-4)
    assert value.explained(logs) < 0.3 if folds == 3 else value.explained(logs) > 0.6
    assert of_cases.min() >= 0 and of_cases.max() <= 1
    value.close()
    assert set(local.rank.models) == {"policy"}
