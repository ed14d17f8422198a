"""Settings of supervised fine-tuning; apart from ``sft.py``, so that they are read without loading torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from calibrated_rl.learner.config import AdamWConfig
from calibrated_rl.settings.fields import NotNegative, Positive, Range


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """Length and pace of the fine-tuning."""

    epochs: NotNegative = 3
    """Passes over the logs, at most; 0 leaves the model as it is."""
    most_dialogues: NotNegative = 0
    """Dialogues used at most, drawn at random; 0 uses all."""
    most_monitored: NotNegative = 0
    """Dialogues of the monitor split, the first of it, on which epochs are evaluated, at most; 0 uses all."""
    batch_dialogues: Positive = 32
    """Dialogues an optimizer step."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 2e-3
    """At its highest, after the warm-up."""
    warmup_steps: NotNegative = 20
    """The first so many optimizer steps ramp the learning rate up linearly."""
    decay: bool = True
    """Lower the learning rate linearly to a twentieth over all epochs."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    patience: Positive = 1
    """Epochs without a better monitor likelihood before stopping."""
    adapters: bool = True
    """Train by adapters where ``learner.lora`` names the model; false: the whole model, as one made on the spot needs
    it to learn to speak."""
    keep: Literal["best", "last"] = "best"
    """`best` epoch on the monitor split, the start included, or the `last` of all epochs (for a placebo)."""
