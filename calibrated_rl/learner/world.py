"""The process group of the ranks: environment, device, random state, exact sums.

DeepSpeed reads its rank from the environment, and ``DS_ACCELERATOR`` when it is first imported; so this
module imports it only after both are set.
"""

import os
import random
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from calibrated_rl.runtime import third_party

LOCALHOST = "127.0.0.1"


def free_port() -> int:
    """A port that is free at this moment; another process may take it."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


class World:
    """The process group, from this process. One process has one; a second instance must agree with it."""

    def __init__(self, rank: int, size: int, address: str, port: int, threads: int) -> None:
        self.rank = rank
        self.size = size
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(size),
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR=address,
            MASTER_PORT=str(port),
        )
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if self.cuda else "cpu")
        if address == LOCALHOST:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(threads)
        if not self.cuda:
            torch.use_deterministic_algorithms(True)
            # Else torch fills all new tensors, to reveal reads of uninitialised memory: a tenth of a step on a CPU.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        import deepspeed
        from deepspeed.ops import __compatible_ops__

        third_party.hush_deepspeed()
        third_party.hide_bars()
        # The shared-memory collectives would be compiled on the spot: not every machine has a compiler.
        __compatible_ops__["deepspeed_shm_comm"] = False
        if not dist.is_initialized():
            deepspeed.init_distributed("nccl" if self.cuda else "gloo", auto_mpi_discovery=False, verbose=False)
        assert dist.get_world_size() == size, f"this process already belongs to {dist.get_world_size()} ranks"

    def seed(self, seed: int) -> None:
        """Seed everything that draws random numbers in this process."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def random_states(self) -> dict[str, torch.Tensor]:
        """Random state of torch in this process, uint8 on the CPU, by ``cpu`` and (where there is a GPU) ``cuda``."""
        return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if self.cuda else {})

    def set_random_states(self, states: Mapping[str, torch.Tensor]) -> None:
        """Restore the result of ``random_states``, except for devices that this process does not have."""
        torch.set_rng_state(states["cpu"])
        if self.cuda and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"])

    def sum_array(self, values: torch.Tensor) -> torch.Tensor:
        """Sum ``values`` over the ranks in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every rank, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
