"""What a replica of several ranks reserves, and what does not go with it."""

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.placement import resources_of
from tests.support.paths import MICRO


def test_ranks_are_reserved_together() -> None:
    assert resources_of(EngineConfig(tensor_parallel=4, num_gpus=1, num_cpus=2)) == {"CPU": 8, "GPU": 4}
    assert resources_of(EngineConfig(tensor_parallel=2)) == {"CPU": 1.0}
    assert (EngineConfig().executor, EngineConfig(tensor_parallel=2).executor) == ("uni", "mp")


@pytest.mark.parametrize(("settings", "message"), [
    (["policy.engine={tensor_parallel: 2, num_gpus: 0.5}"], "of each of 2 ranks: set it to 1, a GPU a rank"),
    (["policy.engine={tensor_parallel: 2, num_gpus: 1}", "learner.share_weights=true"], "share_weights is true"),
    (["simulator.engine={tensor_parallel: 2, num_gpus: 1, kv_cache_mib: 0}", "deterministic=false"], "is planned only"),
    (["policy.engine.args={tensor_parallel_size: 2}"], "how many GPUs .* is `engine.tensor_parallel`"),
])  # fmt: skip
def test_what_does_not_go_with_ranks_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, settings)


def test_a_replica_of_ranks_without_gpus_may_share_the_learners_memory() -> None:
    assert load_config(MICRO, ["policy.engine.tensor_parallel=2", "learner.share_weights=true"])
