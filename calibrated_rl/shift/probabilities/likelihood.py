"""How likely human turns are under a simulator: negative log-likelihood in nats per turn, token and byte.

    NLL per unit = - sum over human turns of log q(turn | history) / number of units

Per token compares models that share a tokenizer; per byte compares any two, and does not reward long tokens.
Each turn's end-of-turn token counts as a token of that turn (when to stop talking is part of how human users talk).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.shift.base import Estimate, ratio_estimate


def human_turn_likelihood(
    dialogues: Sequence[Dialogue],
    logprobs: Sequence[NDArray[np.float32]],
    *,
    side: Side = Side.USER,
    seed: int = 0,
) -> dict[str, Estimate]:
    """``nll_per_turn``, ``nll_per_token`` and ``nll_per_byte`` of the turns of ``side``, overall and by turn.

    ``logprobs[i]`` [T] belongs to the tokens of ``dialogues[i].tokens(side)``: the log-prob of each own token
    under the model in question, NaN elsewhere. Turns are counted from 1 among those of ``side`` (the greeting
    is no turn of the policy's). A turn without own tokens (cut off by the context) is left out.

    Raises:
        UserError: there is no turn to measure.
    """
    rows: list[tuple[float, int, int, int, str]] = []
    for dialogue, values in zip(dialogues, logprobs, strict=True):
        tokens = dialogue.tokens(side)
        assert tokens is not None and len(tokens) == len(values), f"{dialogue.id}: log-probs do not fit tokens"
        is_own_token = ~np.isnan(values)
        spoken = [i for i, turn in enumerate(dialogue.turns) if turn.side is side and i > 0]
        for ordinal, index in enumerate(spoken, start=1):
            turn_logprobs = values[is_own_token & (tokens.turns == index)].astype(np.float64)
            if len(turn_logprobs):
                size = len(dialogue.turns[index].text.encode("utf-8", errors="replace"))
                rows.append((-turn_logprobs.sum(), len(turn_logprobs), size, ordinal, dialogue.id))
    nll = [row[0] for row in rows]
    units = {"turn": [1] * len(rows), "token": [row[1] for row in rows], "byte": [row[2] for row in rows]}
    turns, names = [row[3] for row in rows], [row[4] for row in rows]
    return {
        f"nll_per_{unit}": ratio_estimate(f"nll_per_{unit}", nll, counts, turns, names, seed=seed)
        for unit, counts in units.items()
    }
