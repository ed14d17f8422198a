"""Settings of the learner and of its optimizers."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from calibrated_rl.errors import UserError
from calibrated_rl.learner.slots import CRITIC, POLICY, PROXY, SIMULATOR
from calibrated_rl.settings.fields import Name, NotNegative, OneOf, Positive, Precision, Range, check_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Adapters of one model."""

    rank: Positive = 16
    """Rank of the added matrices; the higher, the more an adapter can learn."""
    alpha: Annotated[float, Range(above=0)] = 32.0
    """The adapters' output is multiplied by ``alpha / rank``."""
    targets: list[Name] = field(default_factory=list)
    """Last names of the linear maps that get adapters, such as ``q_proj``; none: all in the model's layers, not the
    vocabulary projection."""

    def __post_init__(self) -> None:
        check_settings(self, "learner.lora")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWConfig:
    """AdamW but for its learning rate and warm-up, which are settings of each caller."""

    beta1: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Decay of the mean of the gradients."""
    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.999
    """Decay of the mean of their squares."""
    epsilon: Annotated[float, Range(above=0, below=1)] = 1e-8
    """Added to the denominator of the update."""
    weight_decay: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    """Decoupled decay of the weights; stated, because torch's default is 0.01 and DeepSpeed's is 0."""
    max_grad_norm: Annotated[float, Range(at_least=0)] = 1.0
    """Gradients are clipped to this global norm; 0 turns it off."""

    def __post_init__(self) -> None:
        check_settings(self, "optimizer")

    def at(self, learning_rate: float, warmup_steps: int) -> "OptimizerConfig":
        """The whole optimizer."""
        return OptimizerConfig(**asdict(self), learning_rate=learning_rate, warmup_steps=warmup_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig(AdamWConfig):
    """AdamW with a constant learning rate after a linear warm-up."""

    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 1e-5
    """Used where a call to ``step`` gives none."""
    warmup_steps: NotNegative = 0
    """Number of optimizer steps over which the learning rate rises linearly at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """The layout of the ranks and how much they compute at once."""

    ranks: Positive = 1
    """Number of rank actors; the result of a step does not depend on it (up to rounding)."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 nothing is sharded, 1 optimizer state, 2 also gradients, 3 also parameters."""
    dtype: Precision = "float32"
    """``float32`` or ``bfloat16``; under bfloat16 the optimizer keeps float32 master weights."""
    micro_batch_tokens: Positive = 4096
    """Tokens that a rank computes at once; a prefix that sequences share counts once."""
    gradient_checkpointing: bool = False
    """Recompute activations of each layer in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Let torch compile the layers and the loss (minutes at the first step, needs a compiler): for GPUs and runs of
    many steps. Results change by rounding. Not with ``zero_stage`` 3."""
    lora: dict[Annotated[str, OneOf((POLICY, SIMULATOR, PROXY))], LoRAConfig] = field(default_factory=dict)
    """Models that are trained by low-rank adapters alone, by what they are: ``policy``, ``simulator``, ``proxy``. The
    optimizer state is then a few percent of the full one, and only adapters travel to the replicas."""
    share_weights: bool = False
    """Engines read new weights out of memory that the first rank shares with them, twice the weights of each trained
    model: all of them must be on its GPU or, if it has none, on its machine. Otherwise Ray's object store carries the
    weights to any machine, as it does in any case for models with adapters."""
    max_skipped_steps: NotNegative = 3
    """Optimizer steps whose loss, gradient or data are not finite are not taken. When there have been more than so many
    since the learner began, the run ends; 0: at the first."""
    threads: Positive = 2
    """CPU threads of a rank; results are bit-identical for the same number only."""
    cpus: Annotated[float, Range(at_least=0)] = 0.5
    """Ray CPUs that a rank reserves."""
    gpus: Annotated[float, Range(at_least=0)] = 0.3
    """Share of a GPU that a rank reserves where Ray has GPUs; several ranks need one GPU each."""
    labels: dict[Name, Name] = field(default_factory=dict)
    """Labels of the Ray machines that a rank may run on, such as ``part: learner``; none: any machine. With labels a
    rank reserves ``gpus`` even where Ray has no GPU yet: its machine may be one that is added on demand."""
    timeout_seconds: Annotated[float, Range(at_least=1)] = 1800.0
    """No call to the ranks waits longer."""

    def adapters_of(self, name: str) -> LoRAConfig | None:
        """Those of the model ``name``; the policy's critic has the policy's."""
        return self.lora.get(POLICY if name == CRITIC else name)

    def __post_init__(self) -> None:
        check_settings(self, "learner")
        if self.compile and self.zero_stage == 3:
            raise UserError("learner.compile does not go with learner.zero_stage 3: choose a lower stage")
