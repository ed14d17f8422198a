"""Weights in memory that learner and engines share: the same bits, in the dtype that was asked for, or a refusal."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.weight_sync.base import Transport
from calibrated_rl.weight_sync.buckets import ALIGNMENT
from calibrated_rl.weight_sync.shared_memory import (
    SharedMemoryReader,
    SharedWeights,
    SharedWeightsWriter,
    WeightsReplaced,
    check_reachable,
)
from calibrated_rl.weight_sync.tensors import Weights
from tests.support.made_up_learners import samples
from tests.support.made_up_models import make_model

CPU = torch.device("cpu")


def test_offsets_by_hand() -> None:
    memory = SharedWeightsWriter("float32", {"a": (3, 5), "b": (), "c": (7,)}, CPU)
    sent = memory.write([("a", torch.ones(3, 5)), ("b", torch.tensor(2.0)), ("c", torch.arange(7.0))])
    assert [(offset.name, offset.start, offset.end) for offset in sent.bucket.offsets] == [
        ("a", 0, 60), ("b", 64, 68), ("c", 128, 156),
    ]  # fmt: skip
    assert sent.size == ALIGNMENT + 156 and sent.write_count == 1
    found = dict(SharedMemoryReader().tensors(sent))
    assert torch.equal(found["a"], torch.ones(3, 5)) and found["b"] == 2 and found["c"].tolist() == list(range(7))
    memory.close()
    with pytest.raises(RuntimeError):
        SharedMemoryReader().check_write_count(sent)


def test_the_last_two_can_be_read_and_what_was_replaced_is_refused() -> None:
    memory, reader = SharedWeightsWriter("bfloat16", {"a": (2,)}, CPU), SharedMemoryReader()
    first = memory.write([("a", torch.tensor([1.0, 2.0]))])
    ((name, tensor),) = reader.tensors(first)
    second = memory.write([("a", torch.tensor([3.0, 4.0]))])
    reader.check_write_count(first)
    assert name == "a" and tensor.dtype == torch.bfloat16 and tensor.tolist() == [1.0, 2.0]
    third = memory.write([("a", torch.tensor([5.0, 6.0]))])
    assert tensor.tolist() == [5.0, 6.0]
    with pytest.raises(WeightsReplaced, match="number 1 were replaced by 3"):
        reader.check_write_count(first)
    with pytest.raises(WeightsReplaced):
        reader.tensors(first)
    assert next(reader.tensors(second))[1].tolist() == [3.0, 4.0]
    with pytest.raises(AssertionError, match="expected a, got b"):
        memory.write([("b", torch.zeros(2))])
    with pytest.raises(WeightsReplaced, match="number 2 were replaced by -1"):
        reader.check_write_count(second)  # the learner died while it wrote
    reader.check_write_count(third)
    memory.close()


def test_what_an_engine_cannot_reach_is_refused_before_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SharedWeightsWriter("float32", {"a": (2,)}, CPU)
    sent = memory.write([("a", torch.zeros(2))])
    check_reachable(sent, on_gpu=False)
    check_reachable(sent, on_gpu=True)
    assert SharedWeights.of_plain(json.loads(json.dumps(sent.plain()))) == sent
    here = socket.gethostname()
    with pytest.raises(UserError, match=f"on {here} cannot read .* on elsewhere: set learner.share_weights=false"):
        check_reachable(replace(sent, location="elsewhere"), on_gpu=False)
    with pytest.raises(UserError, match="cannot read"):
        check_reachable(replace(sent, handle="/proc/self/fd/0"), on_gpu=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    on_gpu = replace(sent, handle=b"", location=f"{here}, GPU 1")
    check_reachable(on_gpu, on_gpu=True)
    assert SharedWeights.of_plain(json.loads(json.dumps(on_gpu.plain()))) == on_gpu
    for other, mine in ((replace(on_gpu, location=f"{here}, GPU 0"), True), (on_gpu, False)):
        with pytest.raises(UserError, match="cannot read"):
            check_reachable(other, on_gpu=mine)
    memory.close()
    with pytest.raises(UserError, match="cannot read"):
        check_reachable(sent, on_gpu=False)


@pytest.mark.usefixtures("ranks_in_this_process")
@pytest.mark.parametrize(("zero_stage", "dtype"), [(0, "float32"), (0, "bfloat16"), (3, "float32")])
def test_a_rank_puts_there_what_it_would_send(tmp_path: Path, zero_stage: int, dtype: str) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(zero_stage=zero_stage, dtype=dtype, share_weights=True))
    learner.load("policy", tmp_path)
    reader, handles = SharedMemoryReader(), []

    def sent() -> SharedWeights:
        learner.prepare_update("policy")
        found = learner.shared_weights("policy")
        assert isinstance(found, SharedWeights)
        handles.append(found.handle)
        return found

    for _ in range(2):
        learner.step("policy", SampleBatch.of(samples(4)), SFT(SFT.Config()), learning_rate=1e-2)
        found, weights = dict(reader.tensors(sent())), learner.weights("policy")
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    learner.load("policy", tmp_path)
    assert sent().write_count == 3 and handles[0] == handles[2] != handles[1]
    learner.load("policy", tmp_path, trainable=False)
    assert learner.prepare_update("policy") is Transport.OBJECT_STORE
    assert isinstance(learner.full_weights("policy"), Weights)


@pytest.mark.usefixtures("ranks_in_this_process")
def test_models_with_adapters_are_sent_as_ever(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(share_weights=True, lora={"policy": LoRAConfig()}))
    learner.load("policy", tmp_path)
    assert learner.prepare_update("policy") is Transport.LORA
    assert isinstance(learner.full_weights("policy"), Weights)


@pytest.mark.usefixtures("ranks_in_this_process")
def test_without_room_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(share_weights=True))
    learner.load("policy", tmp_path)

    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match="no memory to share the weights of 'policy' with engines: set learner.share_w"):
        learner.prepare_update("policy")
