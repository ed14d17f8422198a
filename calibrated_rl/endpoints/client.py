"""Asks one endpoint, at its pace, until it answers; every answer is paid for once.

The client works in an event loop of its own thread: dialogues run in several loops, one after the other and at once,
and share its limits. What has been sent is waited for and kept even where nobody wants it any more, because it is paid
for: a dialogue that is given up, a run that ends. Of requests that are the same and in flight at once, one is sent.

Who needs an answer in plain code (a judge, a task) calls ``answer_now``; coroutines await ``answer``.
"""

import asyncio
import logging
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, Omit, OpenAIError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random, wait_random_exponential

from calibrated_rl.components.component import looked_up
from calibrated_rl.endpoints.answers import AnswerFile, Paid
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.errors import BudgetSpent, EndpointStopped, Refused, Unanswered
from calibrated_rl.endpoints.pace import Pace
from calibrated_rl.endpoints.requests import Answer, ChatRequest, cost_of, read_answer
from calibrated_rl.endpoints.responses import failure_of
from calibrated_rl.errors import Party, RolloutFailure, UserError, printable
from calibrated_rl.settings.secrets import HIDDEN

logger = logging.getLogger(__name__)

MOST_WAITS = 100
"""Of one request, for a server that asks to wait again and again."""
MOST_EXHAUSTED = 3
"""So many different requests that run out of tries one after the other, without an answer to any other between them,
are the server's fault: the run ends. A single one may be the request's."""
LONGEST_BACKOFF_S = 20.0
"""Between tries, where the server does not say how long."""


class EndpointClient:
    """The client of one endpoint."""

    def __init__(self, name: str, config: EndpointConfig, answers: AnswerFile) -> None:
        self.name, self.config, self.account = name, config, ""
        """``account``: who pays for what is answered from now on, such as an arm and its seed."""
        self._answers = answers
        self._key = ""
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    # ---- from any thread -----------------------------------------------------------------------------

    async def answer(self, request: ChatRequest) -> Answer:
        """The answer to ``request``.

        Raises:
            RolloutFailure: there is none, though others get theirs.
            EndpointStopped: nobody will get one; says why.
            UserError: the environment lacks the key.
        """
        if (kept := self._kept(request)) is not None:
            return kept
        loop = asyncio.get_running_loop()
        received: asyncio.Future[Answer] = loop.create_future()

        def deliver(answer: Answer | None, error: BaseException | None) -> None:
            if received.done():
                return
            if error is not None:
                received.set_exception(error)
            elif answer is not None:
                received.set_result(answer)

        def done(task: "asyncio.Task[Answer]") -> None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more, and the answer is kept
                loop.call_soon_threadsafe(deliver, None if error else task.result(), error)

        self._started().call_soon_threadsafe(lambda: self._task(request).add_done_callback(done))
        return await received

    def answer_now(self, request: ChatRequest) -> Answer:
        """As ``answer``, for code that is no coroutine; waits."""
        if (kept := self._kept(request)) is not None:
            return kept

        async def wait() -> Answer:
            return await asyncio.shield(self._task(request))

        return asyncio.run_coroutine_threadsafe(wait(), self._started()).result()

    def check_key(self) -> None:
        """Look the key up in the environment.

        Raises:
            UserError: it is not there.
        """
        self._key = _key_of(self.name, self.config)

    def counts(self) -> Counter[str]:
        """What this process has done so far: ``answers`` that were paid and their ``cost``, ``prompt_tokens`` and
        ``completion_tokens``; ``cached``, answers that were there; ``retries``, of which ``waits`` that the
        server asked for; and the failures of tries by cause, ``failed: CAUSE``."""
        with self._lock:
            return Counter(self._counted)

    def paid(self, account: str | None = None) -> Paid:
        """What ``account`` (None: all) has paid, in earlier processes, too."""
        return self._answers.paid(account)

    def close(self) -> None:
        """Wait for what has been sent, and end the thread. It starts again with the next request."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._drain(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._loop, self._thread, self._closing = None, None, False

    def _kept(self, request: ChatRequest) -> Answer | None:
        answer = self._answers.get(request.key(self.config))
        if answer is not None:
            self._count(cached=1)
        return answer

    def _count(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._counted[name] += amount  # type: ignore[assignment]

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self.check_key()
                self._api = self._client()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name=f"endpoint {self.name}", daemon=True
                )
                self._thread.start()
            return self._loop

    def _client(self) -> AsyncOpenAI:
        # None of the environment's credentials for another API may reach this one.
        names = ("OpenAI-Organization", "OpenAI-Project", *(() if self._key else ("Authorization",)))
        self._omitted: Any = {name: Omit() for name in names}
        return AsyncOpenAI(
            base_url=self.config.base_url, api_key=self._key or "none", organization="", project="",
            timeout=self.config.timeout, max_retries=0, _enforce_credentials=False,
        )  # fmt: skip

    # ---- in the client's own thread ------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        self._tasks: dict[str, asyncio.Task[Answer]] = {}
        self._pace = Pace(self.config)
        self._purse = _Purse(self.name, self.config, self._answers)
        self._exhausted: set[str] = set()
        self._on_the_wire: set[asyncio.Task[Any]] = set()
        self._stopped: EndpointStopped | None = None
        loop.run_forever()
        loop.run_until_complete(self._api.close())
        loop.close()

    def _task(self, request: ChatRequest) -> "asyncio.Task[Answer]":
        """What gets the answer to ``request``: one task for all that want it at the same time."""
        key = request.key(self.config)
        if (task := self._tasks.get(key)) is not None:
            self._count(cached=1)
            return task
        task = self._tasks[key] = asyncio.ensure_future(self._get(key, request))

        def forget(done: "asyncio.Task[Answer]") -> None:
            del self._tasks[key]
            if not done.cancelled():
                done.exception()  # whoever waited has it; nobody may have

        task.add_done_callback(forget)
        return task

    async def _get(self, key: str, request: ChatRequest) -> Answer:
        if (kept := self._answers.get(key)) is not None:  # of a moment ago
            self._count(cached=1)
            return kept
        bound = request.highest_cost(self.config)
        await self._purse.reserve(bound)
        try:
            answer = await self._tried(request)
            cost = cost_of(answer.prompt_tokens, answer.completion_tokens, self.config)
            answer = self._answers.keep(key, answer, cost, self.account)
        except Unanswered as failure:
            self._exhausted.add(key)
            if len(self._exhausted) >= MOST_EXHAUSTED:
                raise self._stop(
                    f"{len(self._exhausted)} requests in a row had no answer (the last: {failure.cause}, after "
                    f"{self.config.retries} retries)"
                ) from failure
            raise RolloutFailure(f"endpoint {self.name}: {failure.cause}", Party.ENGINE) from failure
        except Refused as refusal:
            if not self.counts()[f"failed: {refusal.cause}"]:
                logger.warning(f"endpoint {self.name} refuses a request ({refusal}); further ones are counted only")
            self._count(**{f"failed: {refusal.cause}": 1})
            raise RolloutFailure(f"endpoint {self.name}: {refusal.cause}", Party.USER) from refusal
        finally:
            await self._purse.settle(bound)
        self._exhausted.clear()
        self._count(
            answers=1, cost=cost, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
        )
        return answer

    async def _tried(self, request: ChatRequest) -> Answer:
        """The answer after as many tries as are allowed.

        Raises:
            Unanswered: the last of them.
        """
        counted = 0

        def enough(state: RetryCallState) -> bool:
            nonlocal counted
            failure = _failure(state)
            counted += failure.wait_s is None
            stop = counted > self.config.retries or state.attempt_number > MOST_WAITS or self._closing
            self._count(
                **{f"failed: {failure.cause}": 1}, retries=not stop, waits=not stop and failure.wait_s is not None
            )
            return stop

        backoff, scatter = wait_random_exponential(multiplier=0.25, max=LONGEST_BACKOFF_S), wait_random(0, 0.25)

        def before_next(state: RetryCallState) -> float:
            # A pause that the server asks for is one of all requests (``Pace``); they do not all return at once.
            return scatter(state) if _failure(state).wait_s is not None else backoff(state)

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unanswered), stop=enough, wait=before_next, reraise=True
        )  # fmt: skip
        return await retrying(self._try_once, request)

    async def _try_once(self, request: ChatRequest) -> Answer:
        async with self._pace:
            await self._pace.turn(request.estimated_tokens)
            if self._stopped is not None:
                raise self._stopped
            return read_answer(await self._send(request), request)

    async def _send(self, request: ChatRequest) -> bytes:
        """The body of a response that says that all went well.

        Raises:
            Unanswered, Refused, EndpointStopped: it is none.
        """
        task = asyncio.current_task()
        assert task is not None
        self._on_the_wire.add(task)
        try:
            # The library's own time-out is between two bytes: a server that drips would never be given up.
            async with asyncio.timeout(self.config.timeout):
                body = request.body(self.config)
                response = await self._api.chat.completions.with_raw_response.create(
                    model=body.pop("model"), messages=body.pop("messages"), extra_body=body,
                    extra_headers=self._omitted,
                )  # fmt: skip
                return response.content
        except (TimeoutError, APITimeoutError) as error:
            raise Unanswered("time-out") from error
        except APIConnectionError as error:
            raise Unanswered(_cause_of(error)) from error
        except APIStatusError as error:
            failure = failure_of(
                error.status_code, error.response.headers, self._hidden(error.response.text), self.config.model
            )
            if isinstance(failure, EndpointStopped):
                raise self._stop(str(failure)) from None
            if isinstance(failure, Unanswered) and failure.wait_s is not None:
                self._pace.pause(failure.wait_s)
            raise failure from None
        except OpenAIError as error:
            raise Unanswered(type(error).__name__) from error
        finally:
            self._on_the_wire.discard(task)

    def _hidden(self, text: str) -> str:
        """``text`` without the key: servers quote what they refuse."""
        return text.replace(self._key, HIDDEN) if self._key else text

    def _stop(self, reason: str) -> EndpointStopped:
        """The error for all that wait and will ask."""
        self._stopped = EndpointStopped(
            f"endpoints.{self.name} ({printable(self.config.base_url)}): {reason}; when that is mended, the same "
            "command resumes, and nothing that was answered is paid twice"
        )
        return self._stopped

    async def _drain(self) -> None:
        """Give up what has not been sent, and wait for the rest."""
        for task in list(self._tasks.values()):
            if task not in self._on_the_wire:
                task.cancel()
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))
            await asyncio.sleep(0)


class _Purse:
    """What is left of the budget; belongs to one event loop."""

    def __init__(self, name: str, config: EndpointConfig, answers: AnswerFile) -> None:
        self._name, self._budget, self._answers = name, config.budget, answers
        self._reserved = 0.0
        self._changed = asyncio.Condition()

    async def reserve(self, cost: float) -> None:
        """Reserve what a request may cost; waits for what is in flight where that may decide.

        Raises:
            BudgetSpent: it could cost more than is left.
        """
        if not self._budget:
            return
        async with self._changed:
            while (spent := self._answers.paid().cost) + self._reserved + cost > self._budget:
                if spent + cost > self._budget:
                    raise BudgetSpent(
                        f"endpoints.{self._name}.budget is {self._budget:g}: {spent:.6g} of it is spent, and the next "
                        f"request could cost {cost:.2g}; with a larger budget the same command resumes, and nothing "
                        "that was answered is paid twice"
                    )
                await self._changed.wait()
            self._reserved += cost

    async def settle(self, cost: float) -> None:
        """The request is over."""
        if not self._budget:
            return
        async with self._changed:
            self._reserved -= cost
            self._changed.notify_all()


def _failure(state: RetryCallState) -> Unanswered:
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, Unanswered), "nothing else is tried again"
    return failure


def _cause_of(error: BaseException) -> str:
    """The name of what lies below an error of the connection, under which it is counted."""
    return type(error.__cause__ or error).__name__


def _key_of(name: str, config: EndpointConfig) -> str:
    """The key itself, looked up in the environment.

    Raises:
        UserError: it is not there.
    """
    if config.api_key == HIDDEN:
        raise UserError(
            f"endpoints.{name}: the secret 'api_key' was not stored with the run; give it as ${{oc.env:NAME}}"
        )
    key = looked_up({"api_key": config.api_key}, f"endpoints.{name}")["api_key"]
    if not isinstance(key, str) or (config.api_key and not key.strip()):
        raise UserError(f"endpoints.{name}.api_key: the environment variable that it names is empty")
    return key.strip()
