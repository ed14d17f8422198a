"""Settings of engines and of sampling, in a file of their own so that reading them does not load an engine."""

from dataclasses import dataclass, field
from typing import Annotated

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, NotNegative, Positive, Precision, Range, check_settings

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
    kv_cache_mib: NotNegative = 512
    """Memory of the KV cache. 0: what the learner leaves of the device that both share, which is measured first."""
    least_kv_cache_mib: NotNegative = 0
    """An engine that does not start with ``kv_cache_mib`` is tried with half of it, and so on, down to this; 0: it is
    not. Where the program chooses the size, it also chooses this: a quarter, with capacity for the longest dialogue."""
    weight_bucket_mib: Positive = 128
    """New weights reach the engine's process in blocks of this size, in memory that is kept for two of them; a single
    larger tensor enlarges the blocks to its own size."""
    threads: Positive = 1
    """OpenMP threads on CPU."""
    eager: bool = True
    """Skip compilation and CUDA graphs: starts faster, runs slower on a GPU."""
    num_cpus: Annotated[float, Range(at_least=0)] = 0.5
    """CPUs that Ray reserves for a replica."""
    num_gpus: Annotated[float, Range(at_least=0)] = 0.0
    """Share of a GPU that Ray reserves for a replica; 0: it runs on the CPU."""
    labels: dict[Name, Name] = field(default_factory=dict)
    """Labels of the Ray machines that a replica may run on, such as ``part: rollout``; none: any machine."""
    timeout_seconds: Annotated[float, Range(at_least=1)] = 300.0
    """For one answer or one weight update; a replica that takes longer is killed and restarted."""
    start_timeout_seconds: Annotated[float, Range(at_least=1)] = 600.0
    """Longest wait for a replica to load its model; where Ray adds machines on demand, for its machine as well."""

    def __post_init__(self) -> None:
        check_settings(self, "engine")
        if self.kv_cache_mib and self.least_kv_cache_mib > self.kv_cache_mib:
            raise UserError(f"engine.least_kv_cache_mib is more than engine.kv_cache_mib, {self.kv_cache_mib}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
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
