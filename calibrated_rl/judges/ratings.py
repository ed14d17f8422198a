"""People's ratings of dialogues, as logs have them beside the turns."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError, printable
from calibrated_rl.judges.checked import TASK_REWARD, TASK_SUCCESS

OF_OUTCOME = {"reward": TASK_REWARD, "success": TASK_SUCCESS}
"""Ratings that are the outcome's, with where a judged outcome keeps what the log or the task had said."""


def rating_of(dialogue: Dialogue, key: str) -> float | None:
    """The rating called ``key``: a number (or truth value) of the dialogue's metadata, a dotted name where it lies
    deeper; ``reward`` or ``success``: the outcome's, and never a judge's. None: it has none.
    """
    if key in OF_OUTCOME:
        return _of_outcome(dialogue, key)
    metadata = dialogue.annotations.get("metadata", {})
    if isinstance(metadata, Mapping) and key in metadata:
        return _number(metadata[key])
    value: Any = metadata
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return _number(value)


def refuse_unrated(dialogues: Sequence[Dialogue], key: str, source: str) -> None:
    """
    Raises:
        UserError: none of ``dialogues`` has the rating; names what could be one.
    """
    if any(rating_of(dialogue, key) is not None for dialogue in dialogues):
        return
    counts = Counter(name for dialogue in dialogues for name in _numbers_in(dialogue.annotations.get("metadata", {})))
    counts.update(name for dialogue in dialogues for name in OF_OUTCOME if _of_outcome(dialogue, name) is not None)
    names = ", ".join(f"{printable(name, 60)} ({count})" for name, count in counts.most_common(20)) or "none"
    raise UserError(
        f"{source}: no dialogue has a number as '{printable(key, 60)}'; numbers beside its {len(dialogues)} dialogues: "
        f"{names}"
    )


def _of_outcome(dialogue: Dialogue, key: str) -> float | None:
    outcome = dialogue.outcome
    if outcome is None:
        return None
    if (name := OF_OUTCOME[key]) in outcome.details:
        return _number(outcome.details[name])
    return outcome.episode_return if key == "reward" else float(outcome.success)


def _number(value: Any) -> float | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _numbers_in(metadata: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(metadata, Mapping):
        for name, value in metadata.items():
            yield from _numbers_in(value, f"{prefix}.{name}" if prefix else str(name))
    elif _number(metadata) is not None:
        yield prefix
