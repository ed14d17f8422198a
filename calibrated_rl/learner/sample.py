"""The learner's input: one token sequence with its credit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """A sequence with credit. The mask of ``tokens`` already selects the tokens with loss."""

    tokens: TokenSequence
    name: str = ""
    """Id of the dialogue that it comes from, for messages."""
    group: str = ""
    """Id of the dialogue's group, for messages."""
    advantage: float = 0.0
    """Credit of every masked token of the sequence (policy-gradient losses)."""
    token_advantages: NDArray[np.float32] | None = None
    """Credit of each token, shape [T], in the place of ``advantage`` (credit by turn)."""
    weight: float = 1.0
    """Weight of the sequence in likelihood losses (SFT), or of the pair that it opens (DPO)."""
    token_weights: NDArray[np.float32] | None = None
    """Optional weight of each token, shape [T], multiplied with ``weight`` (density-ratio weighted SFT)."""
    reference_logprobs: NDArray[np.float32] | None = None
    """Log-probs of the masked tokens under the frozen reference, shape [T], NaN where not masked."""
    targets: NDArray[np.float32] | None = None
    """What a value head is to predict before each masked token, shape [T]; other tokens' are not read."""
