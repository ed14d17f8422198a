"""Turns in lockstep, for deterministic mode: the same batches enter the engines in every run."""

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from calibrated_rl.inference.turns import Generated, GenerateRequest


class LockstepTarget(Protocol):
    """What samples batches of turns: the replicas of one role."""

    def route(self, key: str) -> int:
        """The replica of the dialogue ``key``."""
        ...

    async def generate_lockstep(self, key: str, requests: list[GenerateRequest]) -> list[Generated]:
        """Sample ``requests`` as one batch, in their order, on the replica of the dialogue ``key``."""
        ...


class _Waiting(NamedTuple):
    target: LockstepTarget
    key: str
    request: GenerateRequest
    future: asyncio.Future[Generated]


@dataclass
class LockstepScheduler:
    """Delays turns until all running dialogues wait for one; shared by the pools of both sides."""

    running: int = 0
    """Number of running dialogues."""
    waiting: list[_Waiting] = field(default_factory=list)
    """Turns that are delayed."""
    _sending: set[asyncio.Task[list[Generated]]] = field(default_factory=set)
    """Keeps running tasks from being collected; the event loop has weak references only."""

    def enter(self) -> None:
        """A dialogue begins."""
        self.running += 1

    def leave(self) -> None:
        """A dialogue is over: the others do not wait for it any more."""
        self.running -= 1
        self._schedule_check()

    def _schedule_check(self) -> None:
        """Check after two iterations of the event loop, when tasks that are about to run have entered or requested."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._send_if_all_wait)

    async def generate(self, target: LockstepTarget, key: str, request: GenerateRequest) -> Generated:
        """Sample the next turn of the dialogue ``key``, together with that of every other running dialogue.

        Raises:
            Exception: what ``target`` raises for the batch.
        """
        future: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self.waiting.append(_Waiting(target, key, request, future))
        self._schedule_check()
        return await future

    def _send_if_all_wait(self) -> None:
        if not self.waiting or len(self.waiting) < self.running:
            return
        turns, self.waiting = sorted(self.waiting, key=lambda turn: turn.key), []
        by_replica: dict[tuple[int, int], list[_Waiting]] = {}
        for turn in turns:
            by_replica.setdefault((id(turn.target), turn.target.route(turn.key)), []).append(turn)
        for batch in by_replica.values():
            self._send(batch)

    def _send(self, batch: list[_Waiting]) -> None:
        head = batch[0]
        task = asyncio.ensure_future(head.target.generate_lockstep(head.key, [turn.request for turn in batch]))
        self._sending.add(task)

        def deliver(finished: asyncio.Task[list[Generated]]) -> None:
            """Every dialogue of the batch gets its turn, or the error, of whatever kind it is."""
            self._sending.discard(finished)
            error = asyncio.CancelledError() if finished.cancelled() else finished.exception()
            for index, turn in enumerate(batch):
                if turn.future.done():
                    continue
                if error is not None:
                    turn.future.set_exception(error)
                else:
                    turn.future.set_result(finished.result()[index])

        task.add_done_callback(deliver)
