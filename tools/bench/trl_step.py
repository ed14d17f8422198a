"""Whole steps of TRL's ``GRPOTrainer``, timed: the baseline of the row ``whole step``.

Runs by itself in a process that has TRL beside torch and transformers, and imports nothing of this package. It reads
its settings as JSON from its standard input (the fields of ``Settings``) and prints as JSON, on its last line, the
seconds of each step, and the lengths of the last completions.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of both sides."""

    model: str
    """A folder in Hugging Face format."""
    dtype: Literal["float32", "bfloat16"]
    prompts: list[str]
    """One a group; each step takes the next ``groups`` of them."""
    groups: int
    group_size: int
    completion_tokens: int
    """Of each completion, neither more nor less."""
    steps: int
    threads: int
    learning_rate: float
    folder: str
    """Output folder of the trainer."""


def reward_of(ids: list[int]) -> float:
    """Anything that differs between completions: the share of even ids."""
    return sum(token_id % 2 == 0 for token_id in ids) / len(ids)


def timed_steps(settings: Settings) -> dict[str, Any]:
    from datasets import Dataset  # type: ignore[import-not-found]
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(settings.threads)
    ends: list[float] = []
    lengths: list[int] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths[:] = [len(ids) for ids in completion_ids]
        return [reward_of(ids) for ids in completion_ids]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    config = GRPOConfig(
        output_dir=settings.folder,
        use_cpu=True,
        bf16=settings.dtype == "bfloat16",
        model_init_kwargs={"dtype": settings.dtype},
        per_device_train_batch_size=settings.groups * settings.group_size,
        num_generations=settings.group_size,
        max_completion_length=settings.completion_tokens,
        # No end of sequence before the last token: all completions have the same length.
        generation_kwargs={"min_new_tokens": settings.completion_tokens},
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=settings.model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": settings.prompts}),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"seconds": [b - a for a, b in zip(ends, ends[1:], strict=False)], "lengths": lengths}


if __name__ == "__main__":
    print(json.dumps(timed_steps(Settings(**json.load(sys.stdin)))))
