"""Between a dialogue and credit by turn: what each turn that the policy spoke earned, and which tokens get its credit.

The policy's *own* turns are those with tokens of its own. In a whole dialogue these are all but the greeting; on a
logged history it is the last one.
"""

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side


def own_turns(dialogue: Dialogue) -> NDArray[np.int64]:
    """[T] indices into ``dialogue.turns``, in order."""
    assert dialogue.policy_tokens is not None
    return np.unique(dialogue.policy_tokens.turns[dialogue.policy_tokens.mask]).astype(np.int64)


def rewards_of_turns(dialogue: Dialogue) -> NDArray[np.float64]:
    """[T] what each own turn earned, the terminal reward with the last. They add up to the dialogue's return: what was
    earned after a policy turn that is none of its own belongs to the own turn before it or, where there is none before,
    to the first."""
    assert dialogue.outcome is not None
    turns_T = own_turns(dialogue)
    spoken = [index for index, turn in enumerate(dialogue.turns) if index and turn.side is Side.POLICY]
    earned = dialogue.outcome.by_turn(len(spoken))
    rewards = np.zeros(len(turns_T), np.float64)
    if len(turns_T):
        np.add.at(rewards, np.maximum(np.searchsorted(turns_T, spoken, side="right") - 1, 0), earned)
    return rewards


def credit_of_tokens(dialogue: Dialogue, credit: NDArray[np.float32]) -> NDArray[np.float32]:
    """[tokens] the ``credit`` [T] of the own turn that each of the policy's tokens belongs to, 0 for others."""
    tokens, turns_T = dialogue.policy_tokens, own_turns(dialogue)
    assert tokens is not None and len(credit) == len(turns_T)
    values = np.zeros(len(tokens), np.float32)
    places = np.searchsorted(turns_T, tokens.turns[tokens.mask])
    values[tokens.mask] = credit[places]
    return values
