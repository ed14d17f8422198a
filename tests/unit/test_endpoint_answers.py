"""The file of answers: whole, shared by processes, and honest about what broke."""

import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from calibrated_rl.endpoints.answers import AnswerFile
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.requests import Answer, ChatRequest


def answer(text: str) -> Answer:
    return Answer(text=text, finish="stop", prompt_tokens=3, completion_tokens=2)


def test_what_is_kept_is_found_again_and_only_appended(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "api.jsonl"
    first = AnswerFile(file)
    assert first.get("a") is None and first.paid().answers == 0
    first.keep("a", answer("line\nbreak \u2028 \U0001f600"), 0.5, "x")
    before = file.read_bytes()
    first.keep("b", answer("b"), 0.25, "y")
    assert file.read_bytes().startswith(before)
    again = AnswerFile(file)
    assert again.get("a") == answer("line\nbreak \u2028 \U0001f600") and again.get("c") is None
    assert (again.paid().cost, again.paid("x").cost, again.paid("z").cost) == (0.75, 0.5, 0.0)
    assert again.paid("y") == again.paid("y").__class__(answers=1, prompt_tokens=3, completion_tokens=2, cost=0.25)


def test_two_that_share_it_see_each_others_answers(tmp_path: Path) -> None:
    one, two = AnswerFile(tmp_path / "f"), AnswerFile(tmp_path / "f")
    one.keep("a", answer("a"), 1.0, "")
    assert two.get("a") == answer("a") and two.paid().cost == 1.0
    # Both asked at once: both were paid, the first one counts.
    assert two.keep("a", answer("later"), 1.0, "") == answer("a") == one.get("a")
    assert one.paid().cost == 2.0


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_a_broken_line_is_said_and_skipped(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "f"
    writer = AnswerFile(file)
    for key in "abc":
        writer.keep(key, answer(key), 1.0, "")
    lines = file.read_bytes().splitlines(keepends=True)
    if damage == "cut":  # a crash in the middle of a line, which has no end
        file.write_bytes(b"".join(lines[:2]) + lines[2][:40])
        broken = "c"
    elif damage == "changed":
        file.write_bytes(lines[0].replace(b'"text": "a"', b'"text": "z"') + lines[1] + lines[2])
        broken = "a"
    else:
        file.write_bytes(lines[0] + b"[1]\n" + lines[2])
        broken = "b"
    caplog.set_level(logging.WARNING)
    reader = AnswerFile(file)
    assert [key for key in "abc" if reader.get(key) is None] == [broken]
    reader.keep(broken, answer("new"), 1.0, "")
    assert reader.get(broken) == AnswerFile(file).get(broken) == answer("new")
    assert [key for key in "abc" if AnswerFile(file).get(key) is None] == []
    assert "1 broken lines" in caplog.text and reader.paid().answers == 3


def write_many(file: Path, first: int) -> None:
    answers = AnswerFile(file)
    for number in range(first, first + 40):
        answers.keep(str(number), answer("x" * (number * 37 % 500)), 1.0, str(os.getpid()))


@pytest.mark.slow
def test_processes_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(tmp_path / "f", 40 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    everything = AnswerFile(tmp_path / "f")
    assert all(everything.get(str(number)) is not None for number in range(120)) and everything.paid().cost == 120


def test_what_identifies_a_request() -> None:
    config = EndpointConfig(base_url="http://h/v1", model="m")
    request = ChatRequest(messages=[{"role": "user", "content": "hi"}], seed=1, temperature=1.0, max_tokens=5)
    keys = {request.key(config)}
    assert request.key(EndpointConfig(base_url="http://h/v1/", model="m", concurrency=2, price_in=1, retries=0)) in keys
    others = [
        (ChatRequest(messages=[{"role": "user", "content": "ho"}], seed=1, temperature=1.0, max_tokens=5), config),
        (ChatRequest(messages=[{"role": "system", "content": "hi"}], seed=1, temperature=1.0, max_tokens=5), config),
        (ChatRequest(messages=request.messages, seed=2, temperature=1.0, max_tokens=5), config),
        (ChatRequest(messages=request.messages, seed=1, temperature=0.5, max_tokens=5), config),
        (ChatRequest(messages=request.messages, seed=1, temperature=1.0, max_tokens=6), config),
        (request, EndpointConfig(base_url="http://g/v1", model="m")),
        (request, EndpointConfig(base_url="http://h/v1", model="n")),
        (request, EndpointConfig(base_url="http://h/v1", model="m", parameters={"top_p": 0.5})),
        (request, EndpointConfig(base_url="http://h/v1", model="m", limit_key="max_completion_tokens")),
        (request, EndpointConfig(base_url="http://h/v1", model="m", send_seed=False)),
    ]
    keys |= {other.key(its_config) for other, its_config in others}
    assert len(keys) == 1 + len(others)
    unseeded = EndpointConfig(base_url="http://h/v1", model="m", send_seed=False)
    assert others[2][0].key(unseeded) != request.key(unseeded)  # two draws stay two, though the API is not told
    assert "seed" not in json.dumps(request.body(unseeded))


def test_what_a_request_may_cost_is_no_less_than_it_can() -> None:
    config = EndpointConfig(base_url="http://h/v1", model="m", price_in=2.0, price_out=10.0)
    request = ChatRequest(messages=[{"role": "user", "content": "\u00e9" * 10}], seed=1, temperature=1.0, max_tokens=5)
    # 20 bytes are at most 20 tokens, with 8 for the message and 8 for the beginning of the answer
    assert request.highest_cost(config) == pytest.approx((36 * 2 + 5 * 10) / 1e6)
    assert request.estimated_tokens == 5 + 8 + 5
