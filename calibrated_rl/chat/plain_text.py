"""Text as plain text: a tokenizer that knows no control tokens, so that text can never become one (contract 2)."""

import json
from collections.abc import Collection
from typing import Any

from calibrated_rl.errors import UserError

_LAST_RESORT = -1e6
"""Log-probability of a piece that a text is not to be cut into."""


def is_white(token: str) -> bool:
    """Whether an added token is white space: some vocabularies have line breaks and runs of spaces as added tokens,
    also in SentencePiece's spelling."""
    return not token.replace("\u2581", " ").strip()


def plain_encoder(tokenizer: Any, control_ids: Collection[int], name: str) -> Any:
    """A copy of the fast tokenizer in ``tokenizer`` for text that follows a control token.

    Raises:
        UserError: there is no fast tokenizer; ``name`` is the model's.
    """
    from tokenizers import Tokenizer

    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{name}: the tokenizer has no fast version (a tokenizer.json)")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        # An added token that is not flagged special would be matched in text all the same.
        token["special"] = token["special"] or token["id"] in control_ids
    _forget_words(state["model"], control_ids)
    _never_at_the_beginning(state["pre_tokenizer"])
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def _forget_words(model: dict[str, Any], control_ids: Collection[int]) -> None:
    """Some vocabularies (Gemma's) have control tokens as words, too: drop the merges of a BPE that end in one, and let
    a unigram model prefer anything else."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        for number in control_ids:
            if number < len(vocabulary):
                vocabulary[number][1] = _LAST_RESORT
    if not isinstance(vocabulary, dict) or not model.get("merges"):
        return
    words = {word for word, number in vocabulary.items() if number in control_ids}
    if not words:
        return

    def merged(merge: Any) -> str:
        return "".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1)

    model["merges"] = [merge for merge in model["merges"] if merged(merge) not in words]


def _never_at_the_beginning(pre_tokenizer: dict[str, Any] | None) -> None:
    """Text of a dialogue always follows something, so what SentencePiece puts before the very first word of a text
    (``prepend_scheme: first``) has no place in it."""
    if pre_tokenizer is None:
        return
    if pre_tokenizer.get("prepend_scheme") == "first":
        pre_tokenizer["prepend_scheme"] = "never"
    for part in pre_tokenizer.get("pretokenizers", ()):
        _never_at_the_beginning(part)
