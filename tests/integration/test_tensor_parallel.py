"""A replica of two ranks: each takes its own slices of new weights, whichever way they come.

Without a GPU the ranks are processes. A fresh engine of one process, started on the weights that were sent, is the
reference; so is transformers.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.weight_sync.lora import LoRABase, LoRAUpdate, LoRAWeights, with_adapters_merged
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedUpdate, SharedWeightsWriter
from calibrated_rl.weight_sync.tensors import Weights
from tests.integration.test_rollout import IDS, reference, request, sampled_meanwhile

TOLERANCE = 1e-4


def pool_of(folder: Path, tensor_parallel: int) -> ReplicaPool:
    tokens = ChatTokens(AutoTokenizer.from_pretrained(folder))
    engine = EngineConfig(kv_cache_mib=32, weight_bucket_mib=1, max_num_seqs=32, tensor_parallel=tensor_parallel)
    return ReplicaPool("policy", str(folder), tokens, engine)


@pytest.fixture(scope="module", params=["tied", "untied"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of the same shape; their embeddings are tied, or are not."""
    folder = tmp_path_factory.mktemp(f"{request.param}_ranks")
    for seed, name in enumerate("ab"):
        make_tiny(folder / name, ["which day ?", "booked friday seven two"] * 20, seed, tied=request.param == "tied")
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def engines(ray_session: None, models: tuple[Path, Path]) -> Iterator[tuple[ReplicaPool, ReplicaPool]]:
    """Two ranks with the first model, and the reference, of one, with the second."""
    started = pool_of(models[0], 2), pool_of(models[1], 1)
    for pool in started:
        pool.wait_until_ready()
    yield started
    for pool in started:
        pool.close()


@pytest.mark.timeout(1200)
def test_ranks_take_their_slices_of_new_weights(
    engines: tuple[ReplicaPool, ReplicaPool], models: tuple[Path, Path]
) -> None:
    """One test: an engine takes half a minute to start."""
    spread, fresh = engines
    first, second = (load_file(folder / "model.safetensors") for folder in models)
    old, new = reference(models[0]), reference(models[1])
    assert np.abs(old - new).max() > 0.1
    np.testing.assert_allclose(spread.score(IDS), old, atol=TOLERANCE)

    generated = sampled_meanwhile(spread, FullUpdate.of_tensors(second, 1))
    assert any(sorted(set(result.versions.tolist())) == [0, 1] for result in generated)
    np.testing.assert_allclose(spread.score(IDS), fresh.score(IDS), atol=TOLERANCE)
    np.testing.assert_allclose(spread.score(IDS), new, atol=TOLERANCE)
    # Ranks draw the same tokens, and say with what probability.
    said = asyncio.run(spread.generate("key", request(3, 20)))
    both = fresh.score(IDS + said.ids)[len(IDS) - 1 :]
    np.testing.assert_allclose(said.logprobs, both, atol=TOLERANCE)
    batches = [asyncio.run(spread.generate_lockstep("key", [request(i, 8) for i in range(24)])) for _ in range(2)]
    assert [each.ids for each in batches[0]] == [each.ids for each in batches[1]]

    memory = SharedWeightsWriter(
        "float32", {name: tuple(each.shape) for name, each in first.items()}, torch.device("cpu")
    )
    spread.publish(SharedUpdate(version=2, weights=memory.write(first.items())))
    np.testing.assert_allclose(spread.score(IDS), old, atol=TOLERANCE)
    spread.publish(SharedUpdate(version=3, weights=memory.write(second.items())))
    np.testing.assert_allclose(spread.score(IDS), fresh.score(IDS), atol=TOLERANCE)
    memory.close()

    # The other way round: what the reference makes of merged weights, the ranks make of the adapters.
    random = torch.Generator().manual_seed(0)
    factors = {}
    for name, weight in second.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            factors[name.replace(".weight", ".lora_A")] = torch.randn(4, weight.shape[1], generator=random) * 0.1
            factors[name.replace(".weight", ".lora_B")] = torch.randn(weight.shape[0], 4, generator=random) * 0.1
    base = LoRABase("base", ray.put(Weights(second)))
    spread.publish(LoRAUpdate(version=4, base=base, lora=ray.put(LoRAWeights(Weights(factors), 2.0))))
    fresh.publish(FullUpdate.of_tensors(with_adapters_merged(second, factors, 2.0), 1))
    merged = fresh.score(IDS)
    assert np.abs(merged - new).max() > 0.01
    np.testing.assert_allclose(spread.score(IDS), merged, atol=TOLERANCE)
