"""A turn as an engine sees it: the request, the sampled turn, and both packed as flat arrays.

Batches of requests and answers are int32 words in one ``bytes``: pickling a list of ids costs more than all the rest
of sending a turn to its replica.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_WORD = "i"
assert array(_WORD).itemsize == 4, "an int of C has 32 bits on every machine that Ray and vLLM run on"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One turn to sample."""

    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    """Decides the draw in deterministic mode, together with the other turns of its batch."""
    stop_ids: tuple[int, ...]
    """Ends of turns and role headers; sampling any of them ends the turn and stays in the output."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A sampled turn; arrays of shape [T]."""

    ids: list[int]
    logprobs: NDArray[np.float32]
    """Log-probs of the sampled tokens under the distribution they were sampled from."""
    versions: NDArray[np.int32]
    cached: int = 0
    """Tokens of the prompt that the engine had in its prefix cache."""


def pack_requests(requests: Iterable[tuple[int, GenerateRequest]]) -> bytes:
    """Numbered requests as words: number, most tokens, seed, counts of stop ids and prompt ids, the temperature's two
    words, stop ids, prompt ids."""
    words = array(_WORD)
    for number, request in requests:
        words.extend((number, request.max_tokens, request.seed, len(request.stop_ids), len(request.prompt_ids)))
        words.frombytes(array("d", (request.temperature,)).tobytes())
        words.extend(request.stop_ids)
        words.extend(request.prompt_ids)
    return words.tobytes()


def unpack_requests(packed: bytes) -> Iterator[tuple[int, GenerateRequest]]:
    """The inverse of ``pack_requests``."""
    words = array(_WORD, packed)
    offset = 0
    while offset < len(words):
        number, max_tokens, seed, stops, prompt = words[offset : offset + 5]
        (temperature,) = array("d", words[offset + 5 : offset + 7].tobytes())
        stop, start = offset + 7, offset + 7 + stops
        offset = start + prompt
        yield (
            number,
            GenerateRequest(words[start:offset].tolist(), max_tokens, temperature, seed, tuple(words[stop:start])),
        )


def pack_answers(answers: Iterable[tuple[int, Generated]]) -> bytes:
    """Numbered answers as words: number, count of ids, cached tokens, ids, bits of the log-probs, versions."""
    words = array(_WORD)
    for number, answer in answers:
        words.extend((number, len(answer.ids), answer.cached))
        words.extend(answer.ids)
        words.frombytes(answer.logprobs.tobytes())
        words.frombytes(answer.versions.tobytes())
    return words.tobytes()


def unpack_answers(packed: bytes) -> Iterator[tuple[int, Generated]]:
    """The inverse of ``pack_answers``; the arrays look into ``packed``."""
    words = np.frombuffer(packed, np.int32)
    offset = 0
    while offset < len(words):
        number, count, cached = words[offset : offset + 3].tolist()
        ids, logprobs, versions = (words[offset + 3 + field * count :][:count] for field in range(3))
        offset += 3 + 3 * count
        yield number, Generated(ids.tolist(), logprobs.view(np.float32), versions, cached)
