"""Settings of the learner and of its optimizers."""

from dataclasses import dataclass, field

from calibrated_rl.errors import UserError
from calibrated_rl.learner.lora import LoRAConfig
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a constant learning rate after a linear warm-up."""

    learning_rate: float = 1e-5
    """Used where a call to ``step`` gives none."""
    beta1: float = 0.9
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    epsilon: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Decoupled decay of the weights; stated, because torch's default is 0.01 and DeepSpeed's is 0."""
    warmup_steps: int = 0
    """The first so many optimizer steps ramp the learning rate up linearly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How the ranks are laid out and how much they hold at once."""

    ranks: int = 1
    """Number of rank actors; the result of a step does not depend on it (up to rounding)."""
    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing is sharded, 1 optimizer state, 2 also gradients, 3 also parameters."""
    dtype: str = "float32"
    """``float32`` or ``bfloat16``; under bfloat16 the optimizer keeps float32 master weights."""
    micro_batch_tokens: int = 4096
    """A rank computes so many tokens at once; what sequences begin with in common counts once."""
    gradient_checkpointing: bool = False
    """Recompute activations of each layer in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Let torch compile the layers and the loss (minutes at the first step, needs a compiler): for GPUs and runs of
    many steps. Results change by rounding. Not with ``zero_stage`` 3."""
    lora: dict[str, LoRAConfig] = field(default_factory=dict)
    """Models that are trained by low-rank adapters alone, by what they are: ``policy``, ``simulator``, ``proxy``. The
    optimizer then remembers a few percent of what it would, and only adapters travel to the replicas."""
    share_weights: bool = False
    """Engines read new weights out of memory that the first rank shares with them, twice the weights of each trained
    model: all of them must be on its GPU or, if it has none, on its machine. Otherwise Ray's object store carries the
    weights to any machine, as it does in any case for models with adapters."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns it off."""
    max_skipped_steps: int = 3
    """Optimizer steps whose loss, gradient or data are not finite are not taken. When there have been more than so many
    since the learner began, the run ends; 0: at the first."""
    threads: int = 2
    """CPU threads of a rank; results are bit-identical for the same number only."""
    cpus: float = 0.5
    """Ray CPUs that a rank asks for."""
    gpus: float = 0.3
    """Share of a GPU that a rank asks for where Ray has GPUs; several ranks need one GPU each."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the Ray machines that a rank may run on, such as ``part: learner``; none: any machine. With labels a
    rank asks for ``gpus`` even where Ray has no GPU yet: its machine may be one that is added on demand."""
    timeout_seconds: float = 1800.0
    """No call to the ranks waits longer."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"learner.zero_stage is {self.zero_stage}: choose 0, 1, 2 or 3")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"learner.dtype is '{self.dtype}': choose float32 or bfloat16")
        if self.compile and self.zero_stage == 3:
            raise UserError("learner.compile does not go with learner.zero_stage 3: choose a lower stage")
        for name in self.lora:
            if name not in (POLICY, SIMULATOR, PROXY):
                raise UserError(f"learner.lora: there is no model '{name}': choose {POLICY}, {SIMULATOR} or {PROXY}")
        for name in ("ranks", "micro_batch_tokens", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"learner.{name} is {getattr(self, name)}: it must be at least 1")
        if self.max_skipped_steps < 0:
            raise UserError(f"learner.max_skipped_steps is {self.max_skipped_steps}: it must not be negative")
