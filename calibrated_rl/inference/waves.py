"""Turns in waves of fixed order, for deterministic mode: the same batches enter the engines in every run."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from calibrated_rl.inference.turns import Generated, GenerateRequest

if TYPE_CHECKING:
    from calibrated_rl.inference.pool import ReplicaPool


@dataclass
class WaveGate:
    """Holds turns back until all running dialogues have one; shared by the pools of both sides."""

    running: int = 0
    waiting: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]] = field(
        default_factory=list
    )
    _sending: set[asyncio.Task[list[Generated]]] = field(default_factory=set)
    """Keeps running tasks from being collected; the event loop holds them weakly."""

    def enter(self) -> None:
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        self._look_again()

    def _look_again(self) -> None:
        """Look once the tasks that are about to run have entered or asked: two turns of the event loop."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._maybe_send)

    async def generate(self, pool: "ReplicaPool", key: str, request: GenerateRequest) -> Generated:
        future: asyncio.Future[Generated] = asyncio.get_running_loop().create_future()
        self.waiting.append((pool, key, request, future))
        self._look_again()
        return await future

    def _maybe_send(self) -> None:
        if not self.waiting or len(self.waiting) < self.running:
            return
        wave, self.waiting = sorted(self.waiting, key=lambda item: item[1]), []
        by_replica: dict[tuple[int, int], list[int]] = {}
        for index, (pool, key, _, _) in enumerate(wave):
            by_replica.setdefault((id(pool), pool.route(key)), []).append(index)
        for indices in by_replica.values():
            self._send([wave[i] for i in indices])

    def _send(
        self, items: list[tuple["ReplicaPool", str, GenerateRequest, asyncio.Future[Generated]]]
    ) -> None:
        pool, key = items[0][0], items[0][1]
        task = asyncio.ensure_future(pool.generate_wave(key, [request for _, _, request, _ in items]))
        self._sending.add(task)

        def deliver(done: asyncio.Task[list[Generated]]) -> None:
            """Every dialogue of the wave gets its turn, or the error, of whatever kind it is."""
            self._sending.discard(done)
            error = asyncio.CancelledError() if done.cancelled() else done.exception()
            for index, (_, _, _, future) in enumerate(items):
                if future.done():
                    continue
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(done.result()[index])

        task.add_done_callback(deliver)
