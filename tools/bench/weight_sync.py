"""How long it takes until an engine samples under the learner's new weights, against a copy of their bytes.

Everything in between counts: the learner gathers its weights, Ray transports them, the engine pauses, loads them, drops
its prefix cache, and resumes.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.models.tiny import tiny_tokenizer
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.settings.fields import NotNegative, Positive, Range
from calibrated_rl.weight_sync.base import WeightUpdate
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedUpdate
from tools.bench.base import Row, require_device
from tools.bench.made_model import MadeModel
from tools.bench.talk import start_ray


class WeightSync:
    """One learner rank, one engine, a model with random weights."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(MadeModel):
        device: Literal["cpu", "cuda"] = "cpu"
        """``cpu`` or ``cuda``."""
        learner: LearnerConfig = field(default_factory=LearnerConfig)
        engine: EngineConfig = field(default_factory=EngineConfig)
        warm_up: NotNegative = 10
        """The first ones wait for the operating system to give memory to Ray's store, which takes a second for 540 MB
        on a virtual machine, until all of the store has been used once."""
        syncs: Positive = 9
        """Their median is reported."""
        goal: Annotated[float, Range(above=0)] = 10.0
        """Maximum time as a multiple of the copy: this project's own choice, made before anything was measured. On a
        CPU each byte is written three times: into memory shared with the engine's process, into vLLM's joined layers,
        into its packed form; through Ray's object store once more."""
        goal_ms: Annotated[float, Range(above=0)] | None = None
        """Instead of ``goal``: maximum milliseconds."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        require_device(config.device)
        with tempfile.TemporaryDirectory(prefix="calibrated_rl_benchmark_") as temporary_folder:
            folder = Path(temporary_folder)
            config.save_model(folder, config.engine.dtype)
            tiny_tokenizer(["well"], vocab_size=300, context=512).save_pretrained(folder)
            sync_ms, size = self._syncs(folder)
        copy_ms = self._copy_ms(size)
        goal = config.goal if config.goal_ms is None else config.goal_ms
        ratio = sync_ms / copy_ms if config.goal_ms is None else sync_ms
        transport = "memory that both share" if config.learner.share_weights else "Ray's object store"
        goal_unit = "how many copies that is" if config.goal_ms is None else "milliseconds in all"
        return Row(
            value=sync_ms, limit=copy_ms, ratio=ratio, goal=goal, met=ratio <= goal,
            how=f"milliseconds from the learner's weights to an engine that resumes under them, median of "
            f"{config.syncs} ({size / 2**20:.0f} MiB: {config.layers} layers of {config.hidden}, {config.vocabulary} "
            f"words, {config.learner.dtype} in the learner, {config.engine.dtype} in the engine), through {transport}; "
            f"limit: a copy of these bytes from memory to memory by one thread on the {config.device}. The goal counts "
            f"{goal_unit}",
        )  # fmt: skip

    def _syncs(self, folder: Path) -> tuple[float, int]:
        """Median of the times in ms, and the bytes that were sent."""
        import ray

        from calibrated_rl.inference.pool import ReplicaPool
        from calibrated_rl.learner.group import LearnerGroup

        config = self.config
        start_ray(num_cpus=4, object_store_mib=4 * self._mib(folder) + 512)
        pool = ReplicaPool("policy", str(folder), ChatTokens(read_tokenizer(folder, "made")), config.engine)
        learner = LearnerGroup(config.learner)
        try:
            learner.load("policy", folder)
            pool.wait_until_ready()
            times = []
            for version in range(1, config.warm_up + config.syncs + 1):
                began = time.perf_counter()
                update = learner.weight_update("policy", version)
                pool.publish(update)
                times.append(1000 * (time.perf_counter() - began))
            size = self._size(update)
        finally:
            learner.close()
            pool.close()
            ray.shutdown()
        return statistics.median(times[config.warm_up :]), size

    @staticmethod
    def _size(update: WeightUpdate) -> int:
        """Bytes of the weights."""
        import ray

        if isinstance(update, SharedUpdate):
            return update.weights.size
        assert isinstance(update, FullUpdate), "the benchmark trains the whole model"
        return sum(tensor.nbytes for tensor in ray.get(update.weights).values())

    def _mib(self, folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 2**20 + 1

    def _copy_ms(self, size: int) -> float:
        """Median time of a copy of so many bytes in ms."""
        source = torch.ones(size, dtype=torch.uint8, device=self.config.device)
        target, times, threads = source.clone(), [], torch.get_num_threads()
        torch.set_num_threads(1)
        for _ in range(10):
            self._wait()
            began = time.perf_counter()
            target.copy_(source)
            self._wait()
            times.append(1000 * (time.perf_counter() - began))
        torch.set_num_threads(threads)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.config.device == "cuda":
            torch.cuda.synchronize()
