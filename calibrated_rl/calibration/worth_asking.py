"""On which histories a human's reply would help most: where simulators disagree, and where the policy often comes.

**Disagreement** of simulators ``p_1 .. p_K`` on a history is the Jensen-Shannon divergence of their replies,
``1/K sum_k KL(p_k || m)`` with ``m = 1/K sum_k p_k``: how much a reply says about which simulator gave it, in nats, at
most ``log K`` (a committee's divergence from its mean: McCallum and Nigam, "Employing EM and pool-based active learning
for text classification", ICML 1998; as mutual information: Houlsby et al., arXiv 1112.5745). It is 0 where all would
reply alike, however uncertain each of them is of the reply: there the simulators have learned what the logs tell.

**Which histories**: those of a set ``S`` that covers the disagreement best,

    F(S) = sum over visits u of  d(u) max_{s in S} k(u, s),

with the disagreement ``d`` and a similarity ``k`` in [0, 1] of histories. A history counts as often as the policy comes
there or close to it (visits are sampled from its dialogues), and a second one close by adds nothing (facility
location; for active learning: Wei, Iyer and Bilmes, ICML 2015). ``F`` is monotone and submodular, so that
taking the best one again and again reaches ``1 - 1/e`` of the best set's value (Nemhauser, Wolsey and Fisher 1978).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from calibrated_rl.data.dialogue import Side, Turn

Floats = NDArray[np.float64]
LATEST_WEIGHT, EARLIER_WEIGHT = 2, 1
"""How often a word counts in the policy's latest turn, which a reply answers, and in those before."""


def disagreement(log_probs_KMK: Floats) -> float:
    """The Jensen-Shannon divergence of ``K`` simulators in nats, from draws of each; 0 where chance takes it below.

    Args:
        log_probs_KMK: at [k, m, j] the log-prob of simulator ``k``'s ``m``-th draw under simulator ``j``.

    Raises:
        ValueError: fewer than two simulators.
    """
    K = log_probs_KMK.shape[2]
    if K < 2 or log_probs_KMK.shape[0] != K:
        raise ValueError(f"disagreement is of at least two simulators with draws of each, not {log_probs_KMK.shape}")
    mixture_KM = np.logaddexp.reduce(log_probs_KMK, axis=2) - np.log(K)
    own_KM = np.stack([log_probs_KMK[k, :, k] for k in range(K)])
    return float(max(0.0, (own_KM - mixture_KM).mean()))


def similarity(histories: Sequence[Sequence[Turn]]) -> Floats:
    """Cosine of the words of histories that end with a turn of the policy, [N, N] in [0, 1]: those of its latest turn,
    and, counting half as much, those before by side; with their usual weights by how rare they are (tf-idf).

    Raises:
        ValueError: a history is empty.
    """
    if any(not history for history in histories):
        raise ValueError("an empty history cannot be asked about")
    vectors = TfidfVectorizer(analyzer=lambda history: list(_words(history)), dtype=np.float64)
    rows = vectors.fit_transform(histories)
    return np.clip(np.asarray((rows @ rows.T).todense()), 0.0, 1.0)


def _words(history: Sequence[Turn]) -> Iterator[str]:
    *earlier, latest = history
    yield f"turn {len(history)}"
    for word in latest.text.lower().split():
        yield from [f"now {word}"] * LATEST_WEIGHT
    for turn in earlier:
        side = "p" if turn.side is Side.POLICY else "u"
        for word in turn.text.lower().split():
            yield from [f"{side} {word}"] * EARLIER_WEIGHT


def most_worth_asking(disagreement_N: Floats, similarity_NN: Floats, count: int) -> list[int]:
    """Indices of at most ``count`` histories, the best first: each adds most to ``F`` (module's docstring) after those
    before it. Of equal ones the first; where nothing is left to gain, the others by their disagreement."""
    n = len(disagreement_N)
    covered_N = np.zeros(n)
    chosen: list[int] = []
    open_N = np.ones(n, bool)
    for _ in range(min(count, n)):
        gain_N = disagreement_N @ np.maximum(similarity_NN - covered_N[:, None], 0.0)
        key_N = np.where(open_N, gain_N, -np.inf)
        best = int(np.argmax(key_N))
        if key_N[best] <= 1e-12:
            rest = np.flatnonzero(open_N)
            order = rest[np.argsort(-disagreement_N[rest], kind="stable")]
            return [*chosen, *map(int, order[: count - len(chosen)])]
        chosen.append(best)
        open_N[best] = False
        covered_N = np.maximum(covered_N, similarity_NN[:, best])
    return chosen
