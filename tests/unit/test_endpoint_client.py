"""The client of an endpoint against a server on a real socket that fails in every way that servers do."""

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.endpoints.answers import AnswerFile
from calibrated_rl.endpoints.client import EndpointClient
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.errors import BudgetSpent, EndpointStopped
from calibrated_rl.endpoints.requests import Answer, ChatRequest
from calibrated_rl.endpoints.responses import wait_of
from calibrated_rl.errors import Party, RolloutFailure, UserError
from tests.support.fault_server import Fault, FaultServer, said

KEY = "sk-not-to-be-seen"


def request(number: int = 0, *, seed: int = 0) -> ChatRequest:
    messages = [{"role": "system", "content": "be a guest"}, {"role": "user", "content": f"hello {number}"}]
    return ChatRequest(messages=messages, seed=seed, temperature=1.0, max_tokens=16)


def client_of(server: FaultServer, folder: Path, **settings: Any) -> EndpointClient:
    values: dict[str, Any] = {"base_url": server.url, "model": "m", "timeout": 20.0, "retries": 8, "concurrency": 16}
    return EndpointClient("api", EndpointConfig(**values | settings), AnswerFile(folder / "api.jsonl"))


def answers_to(client: EndpointClient, requests: list[ChatRequest]) -> list[Answer | BaseException]:
    async def main() -> list[Answer | BaseException]:
        return await asyncio.gather(*map(client.answer, requests), return_exceptions=True)

    return asyncio.run(main())


def once(*faults: Fault) -> Callable[[int, Mapping[str, Any]], Fault | None]:
    """The first requests fail, the rest are answered."""
    return lambda number, body: faults[number] if number < len(faults) else None


FAULTS = ("429", "500", "503", "close", "cut", "chunks", "malformed", "empty", "array")
SLOW = ("hang", "drip")


def every_third(number: int, body: Mapping[str, Any]) -> Fault | None:
    return None if number % 3 else Fault(FAULTS[number // 3 % len(FAULTS)])


def test_every_request_is_answered_once_whatever_the_server_does(tmp_path: Path) -> None:
    requests = [request(number) for number in range(50)]
    with FaultServer(plan=every_third) as server:
        client = client_of(server, tmp_path)
        answers = answers_to(client, requests)
        client.close()
        assert [each.text for each in answers if isinstance(each, Answer)] == ["said 2 0"] * len(requests)
        counts = server.counts()
        assert set(counts) == {"answered", *FAULTS}
        assert set(server.answered().values()) == {1} and len(server.answered()) == len(requests)
        counted, paid = client.counts(), client.paid()
        failed = sum(count for cause, count in counted.items() if cause.startswith("failed"))
        assert counted["answers"] == paid.answers == len(requests)
        assert failed == counted["retries"] >= counts.total() - len(requests)  # more: connections that were closed

        again = client_of(server, tmp_path)  # as a run that resumes
        assert answers_to(again, requests) == answers
        assert server.counts() == counts and again.counts() == Counter(cached=len(requests))


@pytest.mark.parametrize("fault", [*FAULTS, *SLOW, "408", "409", "425", "502"])
def test_a_fault_is_tried_again(fault: str, tmp_path: Path) -> None:
    with FaultServer(plan=once(Fault(fault))) as server:
        client = client_of(server, tmp_path, timeout=1.0 if fault in SLOW else 20.0)
        assert client.answer_now(request()).text == "said 2 0"
        client.close()
        counted = client.counts()
        assert counted["retries"] == 1 or fault in SLOW  # a busy machine may need another second
        assert fault not in SLOW or counted["failed: time-out"] >= 1


def test_a_server_that_asks_to_wait_is_waited_for_by_all(tmp_path: Path) -> None:
    for headers in ({"retry-after": "0.4"}, {"retry-after-ms": "400"}):
        with FaultServer(plan=once(Fault("429", headers))) as server:
            client = client_of(server, tmp_path / str(headers), concurrency=1, retries=0)
            began = time.monotonic()
            answers = answers_to(client, [request(number) for number in range(3)])
            client.close()
            assert all(isinstance(each, Answer) for each in answers)
            later = [each.began - server.served[0].began for each in server.served[1:]]
            assert min(later) > 0.35 and time.monotonic() - began < 3
            assert client.counts()["waits"] == client.counts()["retries"] == 1


def test_how_long_a_server_asks_to_wait() -> None:
    for text, least, most in (("7", 7, 7), ("-3", 0, 0), (formatdate(time.time() + 60, usegmt=True), 55, 60)):
        waited = wait_of({"retry-after": text})
        assert waited is not None and least <= waited <= most
    assert wait_of({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert wait_of({"retry-after-ms": "soon", "retry-after": "9"}) == 9.0
    for text in ("soon", "nan", "inf", ""):
        assert wait_of({"retry-after": text}) is None
    assert wait_of({}) is None


def test_a_wait_for_tomorrow_ends_the_run(tmp_path: Path) -> None:
    with FaultServer(plan=once(Fault("429", {"retry-after": "86400"}))) as server:
        client = client_of(server, tmp_path)
        with pytest.raises(EndpointStopped, match="asks to wait for 86400 s"):
            client.answer_now(request())
        client.close()


def test_retries_are_counted_and_then_a_dialogue_is_given_up(tmp_path: Path) -> None:
    def poisoned(number: int, body: Mapping[str, Any]) -> Fault | None:
        return Fault("500") if body["messages"][1]["content"] == "hello 1" else None

    with FaultServer(plan=poisoned) as server:
        client = client_of(server, tmp_path, retries=2)
        for _ in range(3):  # as often as a dialogue is tried
            with pytest.raises(RolloutFailure, match="endpoint api: status 500") as failure:
                client.answer_now(request(1))
            assert failure.value.party is Party.ENGINE
        assert server.counts()["500"] == 9
        assert client.answer_now(request(2)).text  # others go on
        client.close()


def test_a_server_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    with FaultServer(plan=lambda number, body: Fault("500")) as server:
        client = client_of(server, tmp_path, retries=1)
        answers = answers_to(client, [request(number) for number in range(6)])
        client.close()
    stopped = [each for each in answers if isinstance(each, EndpointStopped)]
    assert stopped and all(isinstance(each, RolloutFailure | EndpointStopped) for each in answers)
    assert " requests in a row had no answer (the last: status 500, after 1 retries)" in str(stopped[0])


def test_nothing_listens(tmp_path: Path) -> None:
    with FaultServer() as server:
        pass
    client = client_of(server, tmp_path, retries=0)
    with pytest.raises(EndpointStopped, match="no answer"):
        for number in range(3):
            with pytest.raises(RolloutFailure, match="ConnectError"):
                client.answer_now(request(number))
    client.close()


@pytest.mark.parametrize("status", ["401", "402", "403", "404"])
def test_what_no_retry_mends_ends_the_run_at_once_without_the_key(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    body = json.dumps({"error": {"message": f"bad key {KEY}"}})
    with FaultServer(plan=lambda number, _: Fault(status, body=body)) as server:
        client = client_of(server, tmp_path, api_key="${oc.env:SOME_KEY}")
        with pytest.raises(EndpointStopped) as stopped:
            client.answer_now(request())
        client.close()
        assert server.counts().total() == 1
    assert "bad key ***" in str(stopped.value) and KEY not in str(stopped.value) and status in str(stopped.value)


def test_an_exhausted_account_is_no_rate_limit(tmp_path: Path) -> None:
    body = '{"error": {"code": "insufficient_quota"}}'
    with FaultServer(plan=lambda number, _: Fault("429", body=body)) as server:
        client = client_of(server, tmp_path)
        with pytest.raises(EndpointStopped, match="account is exhausted"):
            client.answer_now(request())
        client.close()


def test_a_request_that_is_refused_is_the_users_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "calibrated_rl")
    with FaultServer(plan=once(Fault("400", body='{"error": {"message": "too long"}}'))) as server:
        client = client_of(server, tmp_path)
        with pytest.raises(RolloutFailure) as failure:
            client.answer_now(request())
        assert failure.value.party is Party.USER  # drawn again with another seed
        assert failure.value.reason == "endpoint api: status 400" and "too long" in caplog.text
        assert client.answer_now(request(seed=1)).text == said([{}, {}], 1)
        client.close()


def test_no_more_at_once_than_allowed(tmp_path: Path) -> None:
    with FaultServer(latency_s=0.02) as server:
        client = client_of(server, tmp_path, concurrency=3)
        answers_to(client, [request(number) for number in range(20)])
        client.close()
        assert server.most_at_once == 3


def most_within(times: list[float], seconds: float) -> int:
    return max(sum(begin <= each < begin + seconds for each in times) for begin in times)


def test_no_more_a_minute_than_allowed(tmp_path: Path) -> None:
    with FaultServer() as server:
        client = client_of(server, tmp_path, requests_per_minute=1200)  # 20 a second
        answers_to(client, [request(number) for number in range(30)])
        client.close()
        times = [each.began for each in server.served]
        assert most_within(times, 0.25) <= 5 + 20 + 2 and max(times) - min(times) > 0.4

    slow = request()
    with FaultServer() as server:
        client = client_of(server, tmp_path / "slow", tokens_per_minute=60 * slow.estimated_tokens * 10)  # 10 a second
        answers_to(client, [request(number) for number in range(16)])
        client.close()
        times = [each.began for each in server.served]
        assert max(times) - min(times) > 0.4


def test_the_same_request_at_once_is_sent_once(tmp_path: Path) -> None:
    with FaultServer(latency_s=0.1) as server:
        client = client_of(server, tmp_path)
        answers = answers_to(client, [request()] * 5 + [request(seed=1)])
        client.close()
        assert [each.text for each in answers if isinstance(each, Answer)] == ["said 2 0"] * 5 + ["said 2 1"]
        assert server.counts() == {"answered": 2}


def test_an_answer_is_kept_though_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    with FaultServer(latency_s=0.2) as server:
        client = client_of(server, tmp_path)

        async def given_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.answer(request()), 0.05)

        asyncio.run(given_up())  # its event loop is closed before the answer comes
        client.close()
        assert client.paid().answers == 1
        assert client.answer_now(request()).text == "said 2 0" and server.counts() == {"answered": 1}


def test_the_end_of_a_run_waits_for_what_was_sent_and_sends_no_more(tmp_path: Path) -> None:
    with FaultServer(latency_s=0.3) as server:
        client = client_of(server, tmp_path, concurrency=2, requests_per_minute=6000)

        def ask() -> None:
            answers_to(client, [request(number) for number in range(50)])

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        time.sleep(0.15)
        began = time.monotonic()
        client.close()
        thread.join(5)
        assert time.monotonic() - began < 1 and not thread.is_alive()
        assert client.paid().answers == server.counts()["answered"] == server.counts().total() == 2


def test_an_answer_without_counts_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrated_rl.endpoints.requests import read_answer

    content = b'{"choices": [{"message": {"content": "12345"}, "finish_reason": "length"}]}'
    answer = read_answer(content, request())
    assert (answer.finish, answer.metered, answer.completion_tokens) == ("length", False, 2)
    assert answer.prompt_tokens == (10 + 7 + 3) // 4 + 16


@pytest.mark.parametrize(
    ("content", "text", "unfinished"),
    [("<think>a plan</think> hi", "hi", False), ("<think>a pl", "", True), ("no <think>x</think>", None, False)],
)
def test_thoughts_are_its_own(content: str, text: str | None, unfinished: bool) -> None:
    from calibrated_rl.endpoints.requests import read_answer

    body = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    answer = read_answer(body, request())
    assert answer.text == (content if text is None else text) and answer.unfinished_thought is unfinished


def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    requests = [request(number) for number in range(30)]
    prices = {"price_in": 1000.0, "price_out": 1000.0}  # an answer of 5 + 3 words costs 0.008
    with FaultServer(latency_s=0.01) as server:
        client = client_of(server, tmp_path, budget=0.2, concurrency=4, **prices)
        answers = answers_to(client, requests)
        client.close()
        spent = [each for each in answers if isinstance(each, BudgetSpent)]
        whole = [each for each in answers if isinstance(each, Answer)]
        assert len(spent) + len(whole) == len(requests) and len(spent) > 0
        assert client.paid().cost == pytest.approx(0.008 * len(whole)) and client.paid().cost <= 0.2
        assert client.paid().cost + requests[0].highest_cost(client.config) > 0.2  # as far as it is safe
        assert "endpoints.api.budget is 0.2" in str(spent[0]) and "larger budget" in str(spent[0])

        richer = client_of(server, tmp_path, budget=1.0, **prices)
        assert all(isinstance(each, Answer) for each in answers_to(richer, requests))
        richer.close()
        assert richer.paid().cost == pytest.approx(0.008 * len(requests))
        assert set(server.answered().values()) == {1}


def test_who_pays(tmp_path: Path) -> None:
    with FaultServer() as server:
        client = client_of(server, tmp_path, price_out=1e6)
        client.account = "start-0"
        answers_to(client, [request(0)])
        client.account = "static-0"
        answers_to(client, [request(0), request(1)])
        client.close()
        assert client.paid("start-0").cost == client.paid("static-0").cost == 3.0 and client.paid().cost == 6.0


def test_no_credentials_of_another_api_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, f"other-{name}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("SOME_KEY", KEY)
    with FaultServer() as server:
        for settings in ({}, {"api_key": "${oc.env:SOME_KEY}"}):
            client = client_of(server, tmp_path / str(len(settings)), **settings)
            client.answer_now(request())
            client.close()
        bare, own = server.served
        assert "other-" not in json.dumps([dict(bare.headers), dict(own.headers)])
        names = {name.lower() for name in bare.headers}
        assert not names & {"authorization", "openai-organization", "openai-project"}
        assert {name.lower(): value for name, value in own.headers.items()}["authorization"] == f"Bearer {KEY}"


def test_the_key_is_missing_or_nowhere_to_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FaultServer(plan=once(Fault("500"))) as server:
        client = client_of(server, tmp_path, api_key="${oc.env:SOME_KEY}")
        for value, message in ((None, "SOME_KEY"), ("  ", "is empty")):
            monkeypatch.delenv("SOME_KEY", raising=False)
            if value:
                monkeypatch.setenv("SOME_KEY", value)
            with pytest.raises(UserError, match=message):
                client.check_key()
        monkeypatch.setenv("SOME_KEY", KEY)
        client.answer_now(request())
        client.close()
    assert KEY not in caplog.text
    assert all(KEY not in file.read_text() for file in tmp_path.rglob("*") if file.is_file())
