"""Each transport from the learner's model to what vLLM's worker loads: the same bits, and no more than is needed."""

import asyncio
import json
from collections.abc import Awaitable, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Generic, TypeVar

import pytest
import torch

from calibrated_rl.errors import UserError
from calibrated_rl.weight_sync.base import ReaderName, Receiver, Transport, WeightUpdate, WorkerReader
from calibrated_rl.weight_sync.buckets import BucketReader, BucketSender
from calibrated_rl.weight_sync.lora import LoRABase, LoRABases, LoRAUpdate, lora_weights, with_adapters_merged
from calibrated_rl.weight_sync.object_store import FullUpdate, full_weights
from calibrated_rl.weight_sync.shared_memory import SharedMemories, SharedMemoryReader, SharedUpdate, WeightsReplaced

T = TypeVar("T")


class Stored(Generic[T]):
    """Stands for an object in Ray's store."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.value


class Model:
    """A learner's model: a map with an adapter, and an embedding without."""

    trainable, lora_scale = True, 0.5

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        sizes = {"embed.weight": (7, 3), "layers.0.mlp.up.weight": (5, 3), "layers.0.mlp.down.weight": (3, 5)}
        self.tensors = {name: torch.randn(size, generator=random) for name, size in sizes.items()}
        self.matrices = {
            "layers.0.mlp.up.lora_A": torch.randn(2, 3, generator=random),
            "layers.0.mlp.up.lora_B": torch.randn(5, 2, generator=random),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(each.shape) for name, each in self.tensors.items()}

    def weights(self, *, copy: bool) -> dict[str, torch.Tensor]:
        return self.tensors

    def on_device(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    def adapters(self, *, copy: bool) -> dict[str, torch.Tensor]:
        return self.matrices


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Whose buckets hold one tensor at most."""
    made = Receiver(on_gpu=False, buckets=BucketSender(max_bucket_bytes=1))
    yield made
    made.buckets.close()


def loaded(update: WeightUpdate, receiver: Receiver) -> dict[str, torch.Tensor]:
    """What vLLM's worker would load; messages go through a channel of plain values."""
    readers: dict[str, WorkerReader] = {
        ReaderName.BUCKET: BucketReader(), ReaderName.SHARED_MEMORY: SharedMemoryReader(),
    }  # fmt: skip

    async def load() -> dict[str, torch.Tensor]:
        found = {}
        async with aclosing(await update.receive(receiver)) as messages:
            async for message in messages:
                reader = readers[message["reader"]]
                content: Mapping[str, Any] = json.loads(json.dumps(message["content"]))
                found |= {name: tensor.clone() for name, tensor in reader.read(content)}
        reader.check()
        return found

    return asyncio.run(load())


def assert_same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_full_weights_arrive_through_the_store(receiver: Receiver) -> None:
    update = FullUpdate(version=4, weights=Stored(full_weights(Model(0))))
    assert update.transport is Transport.OBJECT_STORE
    assert_same_bits(loaded(update, receiver), Model(0).tensors)


def test_shared_weights_are_read_where_the_learner_wrote_them(receiver: Receiver) -> None:
    memories = SharedMemories("float32", torch.device("cpu"), rank=0)
    updates = []
    for seed in range(3):
        memories.make("policy", Model(seed))
        weights = memories.write("policy", Model(seed))
        assert weights is not None
        updates.append(SharedUpdate(version=seed, weights=weights))
    assert_same_bits(loaded(updates[2], receiver), Model(2).tensors)
    assert_same_bits(loaded(updates[1], receiver), Model(1).tensors)
    with pytest.raises(WeightsReplaced):
        loaded(updates[0], receiver)
    elsewhere = replace(updates[2], weights=replace(updates[2].weights, location="elsewhere"))
    receiver.lora_base = "kept where nothing is loaded"
    with pytest.raises(UserError, match="shares on elsewhere"):
        loaded(elsewhere, receiver)
    assert receiver.lora_base is not None
    loaded(updates[2], receiver)
    assert receiver.lora_base is None
    # Of other ranks than the first nothing is asked but to take part in gathering.
    other = SharedMemories("float32", torch.device("cpu"), rank=1)
    other.make("policy", Model(0))
    assert other.write("policy", Model(0)) is None


def test_a_replica_gets_the_base_of_adapters_once(receiver: Receiver) -> None:
    model, bases = Model(0), LoRABases()

    def update(version: int) -> LoRAUpdate:
        base = bases.get("policy", lambda: Stored(full_weights(model)))
        return LoRAUpdate(version=version, base=base, lora=Stored(lora_weights(model)))

    whole = with_adapters_merged(model.tensors, model.matrices, 0.5)
    assert not torch.equal(whole["layers.0.mlp.up.weight"], model.tensors["layers.0.mlp.up.weight"])
    changed = {name: tensor for name, tensor in whole.items() if ".mlp." in name}
    assert_same_bits(loaded(update(1), receiver), whole)
    assert_same_bits(loaded(update(2), receiver), changed)
    # Who has other weights since gets all of it again, and everybody does after the model was loaded anew.
    loaded(FullUpdate(version=3, weights=Stored(full_weights(Model(1)))), receiver)
    assert_same_bits(loaded(update(4), receiver), whole)
    bases.forget("policy")
    assert_same_bits(loaded(update(5), receiver), whole)
    assert_same_bits(loaded(update(6), receiver), changed)
    bases.forget()
    assert_same_bits(loaded(update(7), receiver), whole)


def test_what_cannot_be_fetched_leaves_the_replica_as_it_was(receiver: Receiver) -> None:
    async def lost() -> Any:
        raise ConnectionResetError("gone with its machine")

    def raising() -> Awaitable[Any]:
        return lost()

    receiver.lora_base = "base"
    for update in (
        FullUpdate(version=1, weights=raising()),  # type: ignore[arg-type]
        LoRAUpdate(version=1, base=LoRABase("other", raising()), lora=Stored(lora_weights(Model(0)))),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConnectionResetError):
            loaded(update, receiver)
        assert receiver.lora_base == "base"
