"""``engine.args`` in a real engine: they arrive, log-probs are right under speculative decoding, and what vLLM does
not take is told as it is."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.weight_sync.object_store import FullUpdate

REPEATED = [7, 8, 9, 10, 11, 12] * 8
"""Guesses from n-grams of the prompt are made at once, and mostly rejected."""


def pool_of(folder: Path, args: dict[str, Any]) -> ReplicaPool:
    tokens = ChatTokens(AutoTokenizer.from_pretrained(folder))
    engine = EngineConfig(kv_cache_mib=32, max_num_seqs=8, args=args, own_process=False)
    return ReplicaPool("policy", str(folder), tokens, engine)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("arguments")
    for seed, name in enumerate("ab"):
        make_tiny(folder / name, ["which day ?", "booked friday seven two"] * 20, seed)
    return folder / "a", folder / "b"


def expected_log_probs(folder: Path, generated: Generated) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        log_probs = model(torch.tensor([REPEATED + generated.ids])).logits[0].log_softmax(-1)
    return [float(log_probs[len(REPEATED) - 1 + i, token]) for i, token in enumerate(generated.ids)]


def test_speculative_decoding_says_with_what_probability(ray_session: None, models: tuple[Path, Path]) -> None:
    guessing = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    pool = pool_of(models[0], {"max_num_batched_tokens": 600, "speculative_config": guessing})
    try:
        pool.wait_until_ready()
        handle = pool.fleet.handle(0)
        scheduler = handle.apply(lambda replica: replica.engine.settings.scheduler_config).result(60)
        assert scheduler.max_num_batched_tokens == 600
        for version, folder in enumerate(models):
            if version:
                pool.publish(FullUpdate.of_tensors(load_file(folder / "model.safetensors"), version))
            generated = asyncio.run(pool.generate("key", GenerateRequest(REPEATED, 40, 1.0, 5, (1,))))
            assert len(generated.ids) > 5 and set(generated.versions.tolist()) == {version}
            np.testing.assert_allclose(generated.logprobs, expected_log_probs(folder, generated), atol=1e-4)
    finally:
        pool.close()


def test_what_vllm_does_not_take_is_told_as_it_is(ray_session: None, models: tuple[Path, Path]) -> None:
    pool = pool_of(models[0], {"max_num_batched_tokens": 4})
    try:
        with pytest.raises(UserError, match="policy: vLLM does not start with engine.args .*max_num_batched_tokens"):
            pool.wait_until_ready()
    finally:
        pool.close()
