"""A turn as an engine sees it: the request, the sampled turn, and both packed as flat arrays.

Batches of requests and answers are int32 words in one ``bytes``: pickling a list of ids costs more than all the rest
of sending a turn to its replica.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.inference.config import ReshapingConfig

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
    reshaping: ReshapingConfig = ReshapingConfig()


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
    """Numbered requests as words: number, most tokens, seed, top k, counts of stop ids and prompt ids, two words each
    for the temperature and the rest of the reshaping, stop ids, prompt ids."""
    words = array(_WORD)
    for number, request in requests:
        shape = request.reshaping
        stops, prompt = len(request.stop_ids), len(request.prompt_ids)
        words.extend((number, request.max_tokens, request.seed, shape.top_k, stops, prompt))
        reals = (request.temperature, shape.top_p, shape.min_p, shape.repetition_penalty)
        words.frombytes(array("d", reals).tobytes())
        words.extend(request.stop_ids)
        words.extend(request.prompt_ids)
    return words.tobytes()


def unpack_requests(packed: bytes) -> Iterator[tuple[int, GenerateRequest]]:
    """The inverse of ``pack_requests``."""
    words = array(_WORD, packed)
    offset = 0
    while offset < len(words):
        number, max_tokens, seed, top_k, stops, prompt = words[offset : offset + 6]
        temperature, top_p, min_p, penalty = array("d", words[offset + 6 : offset + 14].tobytes())
        stop, start = offset + 14, offset + 14 + stops
        offset = start + prompt
        shape = ReshapingConfig(top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=penalty)
        ids, stop_ids = words[start:offset].tolist(), tuple(words[stop:start])
        yield number, GenerateRequest(ids, max_tokens, temperature, seed, stop_ids, shape)


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
