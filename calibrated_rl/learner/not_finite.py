"""Optimizer steps that are skipped because a value in them is not finite, and their data.

A rank notices (``rank.py``), all ranks agree, weights and optimizer stay unchanged. The driver (``group.py``) counts
them, logs the reason and the dialogues, keeps the data for inspection, and ends the run after too many.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.learner.sample import Sample

MAX_NAMES = 5
"""Dialogues that a message names at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedStep:
    """One optimizer step that was skipped."""

    reason: str
    """What is not finite."""
    sequences: tuple[int, ...]
    """Indices in the batch of the samples that are to blame; all of the step where that is not known."""
    step: tuple[int, ...]
    """Indices of all samples of the step."""


def describe(skipped: SkippedStep, samples: Sequence[Sample]) -> str:
    """What is not finite, and in which dialogues."""
    names = list(dict.fromkeys(samples[i].name or f"sample {i}" for i in skipped.sequences))
    listed = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    return f"{skipped.reason} not finite in {listed}"


def keep_data(folder: Path, skipped: SkippedStep, samples: Sequence[Sample], details: Mapping[str, Any]) -> Path:
    """Write the samples of a step as JSON Lines, after a line with ``details`` and the reason. Returns its path.

    A sample has ``dialogue``, ``group``, ``blamed`` (whether the step was skipped because of it), ``advantage``,
    ``weight`` and, by token, ``ids``, ``scored``, ``turns``, ``versions`` and log-probs. JSON has no number for what is
    not finite: it is written as "NaN", "Infinity" or "-Infinity", and null where nothing was sampled or scored.

    Raises:
        OSError: the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(file.stem.partition("-")[0]) for file in folder.glob("*-*.jsonl")), default=0)
    file = folder / f"{number:04d}-{details['model']}.jsonl"
    lines = [{**details, "reason": skipped.reason, "samples": len(skipped.step)}]
    lines += [_sample_record(samples[i], i in skipped.sequences) for i in skipped.step]
    file.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines), encoding="utf-8")
    return file


def _sample_record(sample: Sample, blamed: bool) -> dict[str, Any]:
    tokens = sample.tokens
    sampled, scored = tokens.versions >= 0, tokens.mask
    record: dict[str, Any] = {
        "dialogue": sample.name, "group": sample.group, "blamed": blamed,
        "advantage": _number(sample.advantage), "weight": _number(sample.weight),
        "ids": tokens.ids.tolist(), "scored": scored.tolist(), "turns": tokens.turns.tolist(),
        "versions": tokens.versions.tolist(), "sampler_logprobs": _numbers(tokens.logprobs, sampled),
    }  # fmt: skip
    if sample.reference_logprobs is not None:
        record["reference_logprobs"] = _numbers(sample.reference_logprobs, scored)
    if sample.token_weights is not None:
        record["token_weights"] = _numbers(sample.token_weights, scored)
    return record


def _numbers(values: NDArray[np.float32], expected: NDArray[np.bool_]) -> list[float | str | None]:
    """``values`` [T]; None where they are NaN and not ``expected`` [T]."""
    pairs = zip(values.tolist(), expected.tolist(), strict=True)
    return [None if math.isnan(value) and not is_expected else _number(value) for value, is_expected in pairs]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else json.dumps(value)
