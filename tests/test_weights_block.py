"""Weights in memory that learner and engines share: the same bits, in the dtype that was asked for, or a refusal."""

from pathlib import Path

import pytest
import torch
from made_up_models import make_model
from test_learner import samples

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.weights import ALIGNMENT, Weights
from calibrated_rl.weights_block import OpenBlocks, WeightsBlock, WeightsInBlock, WeightsReplaced

CPU = torch.device("cpu")


def test_places_by_hand() -> None:
    block = WeightsBlock({"a": (3, 5), "b": (), "c": (7,)}, "float32", CPU)
    sent = block.write([("a", torch.ones(3, 5)), ("b", torch.tensor(2.0)), ("c", torch.arange(7.0))])
    assert [(place.name, place.start, place.end) for place in sent.bucket.places] == [
        ("a", 0, 60), ("b", 64, 68), ("c", 128, 156),
    ]  # fmt: skip
    assert sent.size == ALIGNMENT + 156 and sent.stamp == 1
    found = dict(OpenBlocks().read(sent))
    assert torch.equal(found["a"], torch.ones(3, 5)) and found["b"] == 2 and found["c"].tolist() == list(range(7))
    block.close()
    with pytest.raises(RuntimeError):
        OpenBlocks().check(sent)


def test_what_was_replaced_is_refused() -> None:
    block, blocks = WeightsBlock({"a": (2,)}, "bfloat16", CPU), OpenBlocks()
    first = block.write([("a", torch.tensor([1.0, 2.0]))])
    ((name, tensor),) = blocks.read(first)
    blocks.check(first)
    second = block.write([("a", torch.tensor([3.0, 4.0]))])
    assert name == "a" and tensor.dtype == torch.bfloat16 and tensor.tolist() == [3.0, 4.0]
    with pytest.raises(WeightsReplaced, match="number 1 were replaced by 2"):
        blocks.check(first)
    with pytest.raises(WeightsReplaced):
        blocks.read(first)
    blocks.check(second)
    with pytest.raises(AssertionError, match="b comes where a is due"):
        block.write([("b", torch.zeros(2))])
    with pytest.raises(WeightsReplaced, match="number 2 were replaced by -1"):
        blocks.check(second)  # the learner died while it wrote
    block.close()


@pytest.mark.usefixtures("ranks_in_this_process")
@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "float32"), (0, "bfloat16"), (3, "float32")])
def test_a_rank_puts_there_what_it_would_send(tmp_path: Path, zero_stage: int, dtype: str) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(zero_stage=zero_stage, weights_block=dtype))
    learner.load("policy", tmp_path)
    blocks, openings = OpenBlocks(), set()
    for _ in range(2):
        learner.step("policy", SampleBatch.of(samples(4)), SFT(SFT.Config()), learning_rate=1e-2)
        sent, weights = learner.outgoing("policy"), learner.weights("policy")
        assert isinstance(sent, WeightsInBlock)
        found = dict(blocks.read(sent))
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name].to(getattr(torch, dtype))) for name in weights)
        openings.add(sent.opening)
    learner.load("policy", tmp_path)
    sent = learner.outgoing("policy")
    assert isinstance(sent, WeightsInBlock) and openings == {sent.opening} and sent.stamp == 3


@pytest.mark.usefixtures("ranks_in_this_process")
def test_models_with_adapters_are_sent_as_ever(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(weights_block="float32", lora={"policy": LoRAConfig()}))
    learner.load("policy", tmp_path)
    assert isinstance(learner.outgoing("policy"), Weights)
    with pytest.raises(UserError, match="learner.weights_block is 'float64': choose float32, bfloat16 or nothing"):
        LearnerConfig(weights_block="float64")
