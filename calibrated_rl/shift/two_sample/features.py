"""What the two-sample classifier sees of a reply and its history. Nothing here is fitted, so nothing leaks.

Two inputs. ``words``: hashed words, word pairs and characters of the reply and of its history. ``acts``: dialogue
acts of the reply, which leave typing and spelling out. In both, the reply is crossed with the policy's last
turn: a difference that is only *conditional* (answering "monday" to "which day?" as often as to "what time?")
is invisible in the reply alone and visible in the crosses.

Each input also comes as a few interpretable features, for a family (trees) that does not like hashed text.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

from calibrated_rl.data.dialogue import Side, Turn

_WORD = re.compile(r"\w+|[^\w\s]")
_BITS = 18
_SIZE = 1 << _BITS
_MOST = 24
"""Distinct words of a reply and of a policy turn that are crossed; bounds the cost of a rambling turn."""
_HISTORY_TURNS = 4


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _hashes(items: Sequence[str]) -> NDArray[np.uint64]:
    distinct = list(dict.fromkeys(items))[:_MOST]
    codes = [zlib.crc32(item.encode("utf-8", errors="replace")) for item in distinct]
    return np.array(codes, dtype=np.uint64)


def _crosses(
    reply_hashes: Sequence[NDArray[np.uint64]], context_hashes: Sequence[NDArray[np.uint64]]
) -> sparse.csr_matrix:
    """One indicator for each pair (item of ``left[i]``, item of ``right[i]``), hashed: [N, _SIZE]."""
    rows, columns = [], []
    for i, (a, b) in enumerate(zip(reply_hashes, context_hashes, strict=True)):
        # Odd multipliers mix the two codes; the top bits of the product are the well-mixed ones.
        mixed = (a[:, None] * np.uint64(0x9E3779B97F4A7C15)) ^ (b[None, :] * np.uint64(0xC2B2AE3D27D4EB4F))
        cells = np.unique((mixed * np.uint64(0xFF51AFD7ED558CCD)) >> np.uint64(64 - _BITS))
        columns.append(cells.astype(np.int64))
        rows.append(np.full(len(cells), i))
    index = (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_matrix((np.ones(len(index[0])), index), shape=(len(reply_hashes), _SIZE))


def _bag(texts: Sequence[str], analyzer: str, ngrams: tuple[int, int]) -> sparse.csr_matrix:
    vectorizer = HashingVectorizer(
        analyzer=analyzer,
        ngram_range=ngrams,
        n_features=_SIZE,
        binary=True,
        alternate_sign=False,
        token_pattern=_WORD.pattern if analyzer == "word" else None,
    )
    return vectorizer.transform([text.encode("utf-8", errors="replace").decode() for text in texts])


def last_policy(history: Sequence[Turn]) -> str:
    """Text of the policy's last turn in ``history``; empty where it has not spoken."""
    return next((turn.text for turn in reversed(history) if turn.side is Side.POLICY), "")


def _at_turn(turn: Sequence[int]) -> list[NDArray[np.uint64]]:
    return [_hashes([f"turn {min(t, 8)}"]) for t in turn]


def word_features(
    replies: Sequence[str], histories: Sequence[Sequence[Turn]], turn: Sequence[int]
) -> sparse.csr_matrix:
    """Sparse [N, F]; every block has rows of length 1, so that long texts do not outweigh short ones."""
    reply_hashes = [_hashes(_words(reply)) for reply in replies]
    question_hashes = [_hashes(["any", *_words(last_policy(history))]) for history in histories]
    context = ["\n".join(t.text for t in history[-_HISTORY_TURNS:]) for history in histories]
    blocks = [
        _bag(replies, "word", (1, 2)),
        _bag(replies, "char_wb", (1, 4)),
        _bag(context, "word", (1, 1)),
        normalize(_crosses(reply_hashes, question_hashes)),
        normalize(_crosses(reply_hashes, _at_turn(turn))),
    ]
    return sparse.hstack([*blocks, dense_word_features(replies, histories, turn)], format="csr")


def act_features(
    acts: Sequence[Sequence[str]], histories: Sequence[Sequence[Turn]], turn: Sequence[int]
) -> sparse.csr_matrix:
    """Sparse [N, F] from dialogue acts, crossed with the policy's last turn and the turn index."""
    sets = [_hashes(["|".join(sorted(a)), *a]) for a in acts]
    question_hashes = [_hashes(["any", *_words(last_policy(history))]) for history in histories]
    blocks = [normalize(_crosses(sets, question_hashes)), normalize(_crosses(sets, _at_turn(turn)))]
    return sparse.hstack([*blocks, dense_act_features(acts, histories, turn)], format="csr")


def _share(words: set[str], reference: set[str]) -> float:
    return len(words & reference) / max(1, len(words))


def dense_word_features(
    replies: Sequence[str], histories: Sequence[Sequence[Turn]], turn: Sequence[int]
) -> NDArray[np.float64]:
    """Interpretable features of a reply, [N, 14], each about 0 to 1: length, punctuation, case, overlap with
    the policy's last turn and with what the user said before, turn index."""
    rows = []
    for reply, history, index in zip(replies, histories, turn, strict=True):
        words = _words(reply)
        distinct, question = set(words), _words(last_policy(history))
        user_texts = [t.text for t in history if t.side is Side.USER]
        rows.append(
            [
                np.log1p(len(words)) / 4,
                np.log1p(len(reply)) / 6,
                len(reply) / max(1, len(words)) / 10,
                len(distinct) / max(1, len(words)),
                sum(c.isdigit() for c in reply) / max(1, len(reply)),
                sum(c.isupper() for c in reply) / max(1, len(reply)),
                float("?" in reply),
                float("!" in reply),
                float(reply.rstrip()[-1:] in {".", "!", "?"}),
                _share(distinct, set(question)),
                _share(set(question), distinct),
                _share(distinct, {w for text in user_texts for w in _words(text)}),
                float(bool(user_texts) and user_texts[-1] == reply),
                index / 10,
            ]
        )
    return np.array(rows, dtype=np.float64)


def dense_act_features(
    acts: Sequence[Sequence[str]], histories: Sequence[Sequence[Turn]], turn: Sequence[int]
) -> NDArray[np.float64]:
    """Interpretable features of a reply's acts, [N, 4 + A]: how many, turn index, length of and question in the
    policy's last turn, and which of the (at most 40 most frequent) acts it has."""
    counts: dict[str, int] = {}
    for item in (item for reply_acts in acts for item in reply_acts):
        counts[item] = counts.get(item, 0) + 1
    frequent = sorted(counts, key=lambda item: (-counts[item], item))[:40]
    rows = []
    for reply_acts, history, index in zip(acts, histories, turn, strict=True):
        question = last_policy(history)
        context = [len(reply_acts) / 5, index / 10, np.log1p(len(question)) / 6, float("?" in question)]
        rows.append([*context, *(float(item in reply_acts) for item in frequent)])
    return np.array(rows, dtype=np.float64)
