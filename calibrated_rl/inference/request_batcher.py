"""Turns go to a replica and return from it in batches, without a barrier between turns.

A call to a Ray actor costs about a millisecond of processor time, more than everything else that a turn costs
outside the engine. So the requests of one iteration of the event loop go out in one call, and the call returns when
turns have been sampled, with all that have:

- ``RequestBatcher`` is on the side of the dialogues. While it waits for turns, one of its calls is with the
  replica.
- ``TurnServer`` is on the side of the engine. It answers a call once a turn is done; when the next call comes with
  further turns, it answers the first one at once, without turns: the new ones are sampled beside those in progress.

Nothing waits for the slowest: each turn enters the engine when it is requested, and returns with the first call after
it is done. If the replica dies, the call fails, and with it every turn that is still awaited.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from calibrated_rl.inference.turns import (
    Generated,
    GenerateRequest,
    pack_answers,
    pack_requests,
    unpack_answers,
    unpack_requests,
)
from calibrated_rl.runtime.actor_call import ActorCall

Answers = tuple[bytes, dict[int, BaseException]]
"""Sampled turns (``pack_answers``), and the errors of those that could not be sampled, by number."""

NO_ANSWERS: Answers = (b"", {})


class TurnSource(Protocol):
    """Calls to an actor that has a ``TurnServer``."""

    def sample_turns(self, client: str, batch: bytes) -> ActorCall[Answers]:
        """``TurnServer.sample_turns``."""
        ...

    def drop_client(self, client: str) -> object:
        """``TurnServer.drop_client``."""
        ...


class RequestBatcher:
    """Requests turns of one replica, from one event loop."""

    def __init__(self, replica: TurnSource) -> None:
        self.loop = asyncio.get_running_loop()
        self._replica, self._client = replica, uuid4().hex
        self._submitted = 0
        self._awaited: dict[int, asyncio.Future[Generated]] = {}
        self._unsent: list[tuple[int, GenerateRequest]] = []
        self._calls: set[asyncio.Task[Answers]] = set()

    def submit(self, request: GenerateRequest) -> asyncio.Future[Generated]:
        """The turn, once it is sampled; or the replica's error for it, or that of the call that should bring it."""
        self._submitted += 1
        future = self._awaited[self._submitted] = self.loop.create_future()
        if not self._unsent:
            self.loop.call_soon(self._send)
        self._unsent.append((self._submitted, request))
        return future

    def _send(self) -> None:
        if not self._awaited:  # the requests to send have failed with an earlier call
            return
        batch, self._unsent = self._unsent, []
        call = self.loop.create_task(self._call(pack_requests(batch)))
        self._calls.add(call)
        call.add_done_callback(self._receive)

    async def _call(self, batch: bytes) -> Answers:
        call = self._replica.sample_turns(self._client, batch)
        try:
            return await call
        except asyncio.CancelledError:  # the loop ends: nothing waits for what the replica still samples
            call.cancel()
            raise

    def _receive(self, call: asyncio.Task[Answers]) -> None:
        self._calls.discard(call)
        if call.cancelled():
            # The call may have been cancelled before it reached the replica, which then knows nothing of it.
            if not self._calls:
                self._replica.drop_client(self._client)
            return
        if (error := call.exception()) is not None:
            awaited, self._awaited, self._unsent = self._awaited, {}, []
            for future in awaited.values():
                _fail(future, error)
            return
        answers, errors = call.result()
        for number, turn in unpack_answers(answers):
            future = self._awaited.pop(number)
            if not future.done():
                future.set_result(turn)
        for number, error in errors.items():
            _fail(self._awaited.pop(number), error)
        if self._awaited and not self._calls and not self._unsent:
            self._send()


def _fail(future: asyncio.Future[Generated], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


@dataclass(slots=True)
class _Client:
    """The turns in progress for one ``RequestBatcher``."""

    sampling: set[asyncio.Task[Generated]] = field(default_factory=set)
    done: list[tuple[int, asyncio.Task[Generated]]] = field(default_factory=list)
    call: asyncio.Future[None] | None = None
    """The call that waits until a turn is done."""


class TurnServer:
    """Samples turns that arrive in batches; see the module's docstring. All its calls run in one event loop."""

    def __init__(self, generate: Callable[[GenerateRequest], Awaitable[Generated]]) -> None:
        self._generate = generate
        self._clients: dict[str, _Client] = {}

    async def sample_turns(self, name: str, batch: bytes) -> Answers:
        """Begin to sample ``batch`` (``pack_requests``; may be empty); return the turns that have been sampled for
        ``name``, as soon as there is one, or none when the next call comes."""
        client = self._clients.setdefault(name, _Client())
        for number, request in unpack_requests(batch):
            self._begin(client, number, request)
        if client.call is not None and not client.call.done():
            client.call.set_result(None)
        if not client.done and client.sampling:
            client.call = call = asyncio.get_running_loop().create_future()
            try:
                await call
            except asyncio.CancelledError:
                self.drop_client(name)
                raise
            if client.call is not call:
                return NO_ANSWERS
        client.call = None
        done, client.done = client.done, []
        if not client.sampling:
            self._clients.pop(name, None)
        errors = {number: error for number, task in done if (error := task.exception()) is not None}
        return pack_answers((number, task.result()) for number, task in done if number not in errors), errors

    def drop_client(self, name: str) -> None:
        """Stop to sample what ``name`` does not wait for any more."""
        client = self._clients.pop(name, None)
        for task in client.sampling if client is not None else ():
            task.cancel()

    def _begin(self, client: _Client, number: int, request: GenerateRequest) -> None:
        async def sample() -> Generated:
            return await self._generate(request)

        def finished(task: asyncio.Task[Generated]) -> None:
            client.sampling.discard(task)
            if task.cancelled():
                return
            client.done.append((number, task))
            if len(client.done) == 1:
                loop.call_soon(return_call)  # with all that the engine's step has finished

        def return_call() -> None:
            if client.call is not None and not client.call.done():
                client.call.set_result(None)

        loop = asyncio.get_running_loop()
        task = loop.create_task(sample())
        client.sampling.add(task)
        task.add_done_callback(finished)
