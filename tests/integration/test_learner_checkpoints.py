"""What the learner writes: models that load as they are, checkpoints that continue the same run or are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.checkpoint import FORMAT_VERSION
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from tests.support.made_up_learners import (
    GRPO_TERMS,
    assert_same,
    learner,
    plain_log_probs,
    samples,
    save_model,
    sequences,
)
from tests.support.made_up_models import make_model

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_as_it_is(tmp_path: Path, tied: bool) -> None:
    source = tmp_path / "source"
    make_model(tied).save_pretrained(source)
    (source / "tokenizer.json").write_text("{}")
    made = learner(source, zero_stage=3)
    made.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    made.save("policy", tmp_path / "saved")
    made.save("policy", tmp_path / "saved")
    tokens = sequences()[0]
    batch = SampleBatch.of_sequences([tokens])
    np.testing.assert_allclose(made.score("policy", batch)[0], plain_log_probs(tmp_path / "saved", tokens), atol=1e-5)
    assert (tmp_path / "saved" / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved", "source"], "nothing half-written is left"
    assert ("lm_head.weight" in made.weights("policy")) is not tied


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "float32"), (3, "float32"), (3, "bfloat16")],
)
def test_a_checkpoint_continues_the_same_run(folder: Path, tmp_path: Path, stage: int, dtype: str) -> None:
    batch = SampleBatch.of(samples())
    made = learner(folder, zero_stage=stage, dtype=dtype)
    made.load("simulator", folder, optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=3))
    made.load("reference", folder, trainable=False)
    names = ("policy", "simulator")
    for name in names:
        made.step(name, batch, GRPO_TERMS, minibatches=2)
    snapshot = made.snapshot()
    assert snapshot is not None

    def go_on(continued: LearnerRank) -> list[dict[str, float]]:
        return [continued.step(name, batch, GRPO_TERMS, minibatches=2) for name in names for _ in range(2)]

    expected = go_on(made)  # what comes after the snapshot is not in it
    snapshot.write(tmp_path / "checkpoint")
    other = LearnerRank(made.config)
    torch.rand(7)
    other.restore(tmp_path / "checkpoint")
    assert torch.equal(torch.get_rng_state(), snapshot.tensors["random.safetensors"]["cpu.0"])
    assert sorted(other.models) == ["policy", "simulator"]
    assert go_on(other) == expected
    for name in names:
        ends = [rank.weights(name) for rank in (made, other)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    shutil.rmtree(tmp_path / "checkpoint")  # as when later ones have taken its place
    other.save("policy", tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer_config.json").read_text() == '{"note": "kept"}'


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_goes_on_at_every_zero_stage(folder: Path, tmp_path: Path, dtype: str) -> None:
    batch = SampleBatch.of(samples())
    for before in (0, 2, 3):
        made = learner(folder, zero_stage=before, dtype=dtype)
        for _ in range(2):
            made.step("policy", batch, GRPO_TERMS)
        snapshot = made.snapshot()
        assert snapshot is not None
        snapshot.write(tmp_path / str(before))
        expected = made.step("policy", batch, GRPO_TERMS), made.weights("policy")
        for after in (0, 1, 2, 3):
            other = LearnerRank(LearnerConfig(micro_batch_tokens=128, dtype=dtype, zero_stage=after))
            other.restore(tmp_path / str(before))
            again = other.snapshot()
            assert again is not None
            for file, tensors in snapshot.tensors.items():
                for name, value in tensors.items():
                    assert torch.equal(value, again.tensors[file][name]), (before, after, name)
            # A weight in bfloat16 is within half a unit in its last place of the float32 one: 2**-9 of about 1.
            tolerance = 2e-6 if dtype == "float32" else 2**-8
            found = other.step("policy", batch, GRPO_TERMS), other.weights("policy")
            assert_same(found, expected, metric_tolerance=1e-4 if dtype == "float32" else 1e-2, tolerance=tolerance)


def test_a_checkpoint_that_is_not_as_it_was_written_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    made, place = learner(folder), tmp_path / "checkpoint"
    snapshot = made.snapshot()
    assert snapshot is not None
    snapshot.write(place)
    made.restore(place)  # taken before the first step: there are no moments yet
    with pytest.raises(UserError, match=r"learner\.dtype float32, and it is bfloat16 now"):
        LearnerRank(LearnerConfig(dtype="bfloat16")).restore(place)
    index, files = place / "learner.json", [p for p in place.rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=rf"{file.name} is torn or altered"):
            made.restore(place)
        file.write_bytes(whole)
    for version, age in ((FORMAT_VERSION - 1, "older"), (FORMAT_VERSION + 1, "newer")):
        index.write_text(json.dumps(snapshot.index | {"format": version}))
        with pytest.raises(UserError, match=f"format version {version} is {age} than this program's {FORMAT_VERSION}"):
            made.restore(place)
    index.unlink()
    with pytest.raises(UserError, match="not a whole checkpoint"):
        made.restore(place)
