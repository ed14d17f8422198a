"""Settings of engines and of sampling, in a file of their own so that reading them does not load an engine."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, NotNegative, Positive, Precision, Range, Share, check_settings

LEAST_TEMPERATURE = 0.01
"""vLLM replaces lower ones by it, but for 0 (``SamplingParams``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One vLLM engine."""

    dtype: Precision = "float32"
    """Weights and KV cache: float32 or bfloat16."""
    max_model_len: Positive = 512
    """Longest dialogue in tokens, system prompt included."""
    max_num_seqs: Positive = 256
    """Most dialogues in one batch."""
    tensor_parallel: Positive = 1
    """GPUs of one machine over which the weights of a replica are spread (without GPUs: processes); each is a rank."""
    kv_cache_mib: NotNegative = 512
    """Memory of the KV cache, of each rank. 0: what the learner leaves of the device that both share, which is measured
    first."""
    least_kv_cache_mib: NotNegative = 0
    """An engine that does not start with ``kv_cache_mib`` is tried with half of it, and so on, down to this; 0: it is
    not. Where the program chooses the size, it also chooses this: a quarter, with capacity for the longest dialogue."""
    weight_bucket_mib: Positive = 128
    """New weights reach the engine's process in blocks of this size, in memory that is kept for two of them; a single
    larger tensor enlarges the blocks to its own size."""
    threads: Positive = 1
    """OpenMP threads on CPU."""
    own_process: bool = True
    """vLLM's engine runs in a process of its own. False: in a thread of the replica's process, which starts sooner and
    takes less memory, but not where a replica has several ranks; for machines without a GPU."""
    eager: bool = True
    """Skip compilation and CUDA graphs: starts faster, runs slower on a GPU."""
    num_cpus: Annotated[float, Range(at_least=0)] = 0.5
    """CPUs that Ray reserves for each rank of a replica."""
    num_gpus: Annotated[float, Range(at_least=0)] = 0.0
    """Share of a GPU that Ray reserves for each rank of a replica; 0: it runs on the CPU."""
    labels: dict[Name, Name] = field(default_factory=dict)
    """Labels of the Ray machines that a replica may run on, such as ``part: rollout``; none: any machine."""
    timeout_seconds: Annotated[float, Range(at_least=1)] = 300.0
    """For one answer or one weight update; a replica that takes longer is killed and restarted."""
    start_timeout_seconds: Annotated[float, Range(at_least=1)] = 600.0
    """Longest wait for a replica to load its model; where Ray adds machines on demand, for its machine as well."""
    args: dict[Name, Any] = field(default_factory=dict)
    """Further arguments of vLLM by their names in its ``AsyncEngineArgs``, such as ``max_num_batched_tokens: 8192``.
    docs/models.md says which are refused, and why."""

    def __post_init__(self) -> None:
        check_settings(self, "engine")
        if self.kv_cache_mib and self.least_kv_cache_mib > self.kv_cache_mib:
            raise UserError(f"engine.least_kv_cache_mib is more than engine.kv_cache_mib, {self.kv_cache_mib}")
        if self.tensor_parallel > 1 and self.num_gpus not in (0, 1):
            raise UserError(
                f"engine.num_gpus is {self.num_gpus:g}, of each of {self.tensor_parallel} ranks: set it to 1, a GPU a "
                "rank"
            )

    @property
    def cpus(self) -> float:
        """Ray CPUs of a replica."""
        return self.num_cpus * self.tensor_parallel

    @property
    def gpus(self) -> float:
        """Ray GPUs of a replica."""
        return self.num_gpus * self.tensor_parallel

    @property
    def in_thread(self) -> bool:
        """The engine runs in a thread of the replica's process."""
        return not self.own_process and self.tensor_parallel == 1

    @property
    def executor(self) -> str:
        """How vLLM runs the ranks: in the engine's own process, or in one each."""
        return "uni" if self.tensor_parallel == 1 else "mp"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReshapingConfig:
    """What is made of a model's distribution of the next token before one is drawn; by default nothing. The learner
    does not compute the distribution that results, so what a policy learns from is sampled without."""

    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Only the most likely tokens that have this probability together; 1: all."""
    top_k: NotNegative = 0
    """Only so many of the most likely tokens; 0: all."""
    min_p: Share = 0.0
    """Only tokens at least this many times as likely as the most likely one; 0: all."""
    repetition_penalty: Annotated[float, Range(above=0)] = 1.0
    """Logits of tokens that occur before, in the instructions or whoever said them, are divided by it where they are
    above 0, and multiplied where they are below; 1: they stay."""

    @property
    def reshaped(self) -> tuple[str, ...]:
        """The names of the settings that make it another distribution than the model's; empty: none does."""
        neutral = ReshapingConfig()
        names = (each.name for each in fields(ReshapingConfig))
        return tuple(name for name in names if getattr(self, name) != getattr(neutral, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig(ReshapingConfig):
    """How a side speaks."""

    temperature: Annotated[float, Range(at_least=0)] = 1.0
    """0 is greedy; else at least 0.01, below which vLLM samples at 0.01 all the same. Training uses 1, with nothing cut
    off, so that importance ratios are unbiased."""
    max_turn_tokens: Positive = 16
    """A longer turn is cut, closed by a masked end-of-turn, and counted."""

    def __post_init__(self) -> None:
        check_settings(self, "sampling")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"temperature is {self.temperature:g}: vLLM samples at no temperature between 0 (greedy) and "
                f"{LEAST_TEMPERATURE:g}: log-probs would be another policy's; take one of the two, or a higher one"
            )
