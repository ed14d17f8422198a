"""Exact shift where the human is a program: total variation and KL from the probabilities of human replies.

For each human reply ``y`` on a history, with ``p = human(y | h, a)`` and ``q = simulator(y | h, a)``:

    TV(human, simulator) = E_{y ~ human} [(1 - q / p)_+]        KL(human || simulator) = E_{y ~ human} [log p - log q]

both without bias, because ``sum_y p (1 - q/p)_+ = sum_y (p - q)_+``. The first lies in [0, 1] for every single
reply, so its mean is well behaved; here, and only here, the word *bound* may be used with it.

Already decided: ``p`` is the probability over the *population* (traits summed out, given the history), and ``q``
is that of the whole reply as the simulator speaks: at its temperature, and with its turns cut off after
``max_turn_tokens`` (``reply_log_prob``).
"""

import numpy as np
from numpy.typing import ArrayLike

from calibrated_rl.shift.base import Estimate, ratio_estimate


def reply_log_prob(token_logprobs: ArrayLike, max_turn_tokens: int) -> float:
    """Log-prob in nats that a side says a reply, when its turns are cut off after so many tokens.

    A reply that fits with its end-of-turn token is said by sampling that token. One that takes all the tokens by itself
    is said whatever would have come next. A longer one is never said: ``-inf``.

    Args:
        token_logprobs: [n + 1] of the reply's tokens, its end-of-turn token last.
    """
    values = np.asarray(token_logprobs, np.float64)
    return float(values[:max_turn_tokens].sum()) if len(values) <= max_turn_tokens + 1 else -np.inf


def exact_shift(
    human_logprobs: ArrayLike,
    simulator_logprobs: ArrayLike,
    *,
    turn: ArrayLike,
    dialogue: list[str],
    seed: int = 0,
) -> dict[str, Estimate]:
    """``tv`` and ``kl`` in nats from ``log p`` and ``log q`` of human replies, both [N], one for each reply.

    ``turn`` [N] counts user turns from 1. Where the simulator gives some human reply no probability at all,
    ``kl`` is infinite: it is then reported over the other replies, with a note that says how many were left out.

    Raises:
        UserError: there is no reply.
        ValueError: a human reply that the human never gives, or a log-probability above 0 or not a number.
    """
    log_p, log_q = np.asarray(human_logprobs, np.float64), np.asarray(simulator_logprobs, np.float64)
    if np.isneginf(log_p).any():
        raise ValueError("a human reply has probability 0 under the human: program and replies do not fit")
    if not (np.isfinite(log_p).all() and (log_p <= 1e-6).all() and (log_q <= 1e-3).all()):
        raise ValueError("log-probabilities must be numbers and at most 0")
    turn_N, dialogue_N = np.asarray(turn), np.asarray(dialogue)
    ones = np.ones_like(log_p)
    tv = -np.expm1(np.minimum(log_q - log_p, 0.0))
    possible = np.isfinite(log_q)
    impossible = int((~possible).sum())
    note = f"{impossible} of {len(log_q)} replies have probability 0 under the simulator: KL is infinite"
    notes = (f"{note}; shown without them",) if impossible else ()
    result = {"tv": ratio_estimate("tv", tv, ones, turn_N, dialogue_N, seed=seed)}
    if possible.any():
        result["kl"] = ratio_estimate(
            "kl",
            (log_p - log_q)[possible],
            ones[possible],
            turn_N[possible],
            dialogue_N[possible],
            seed=seed,
            notes=notes,
        )
    else:
        result["kl"] = Estimate(name="kl", value=np.inf, low=np.inf, high=np.inf, notes=notes)
    return result
