"""Which replica serves a dialogue. A state machine without clocks and actors; its cost does not grow with the pool.

- A dialogue stays where it is, because its prefix cache is there, until the replica is out of service.
- The dialogues of a group share instructions, greeting and first turns. So they go where the group's last one went,
  as long as that replica has few more dialogues than the one that has fewest.
- Any other dialogue goes to the replica that has fewest, the lowest number first.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence


class Router:
    """Spreads running dialogues over the replicas that are in service."""

    def __init__(self, slack: int) -> None:
        """``slack``: how many dialogues more than the least loaded replica one may have to share a prefix."""
        self._slack = slack
        self._load: dict[int, int] = {}
        """Running dialogues of each replica in service."""
        self._heap: list[tuple[int, int]] = []
        """(dialogues, replica): the current entry of each replica, among outdated ones."""
        self._replica_of: dict[str, int] = {}
        self._home: dict[str, int] = {}
        """Where the group's last dialogue went."""

    def serve(self, replicas: Iterable[int]) -> None:
        """From now on these are in service; dialogues of other replicas are routed afresh at their next turn."""
        serving = set(replicas)
        self._replica_of = {key: replica for key, replica in self._replica_of.items() if replica in serving}
        self._home = {group: replica for group, replica in self._home.items() if replica in serving}
        self._load = dict.fromkeys(sorted(serving), 0)
        for replica in self._replica_of.values():
            self._load[replica] += 1
        self._heap = [(count, replica) for replica, count in self._load.items()]
        heapq.heapify(self._heap)

    def route(self, key: str) -> int:
        """The replica of the running dialogue ``key``, ``GROUP-MEMBER``. At least one must be in service."""
        current = self._replica_of.get(key)
        if current is not None:
            return current
        group, least_loaded = key.rpartition("-")[0], self._least_loaded()
        preferred_replica = self._home.get(group, least_loaded)
        chosen = (
            preferred_replica
            if self._load[preferred_replica] < self._load[least_loaded] + self._slack
            else least_loaded
        )
        self._replica_of[key] = self._home[group] = chosen
        self._count(chosen, 1)
        return chosen

    def leave(self, key: str) -> None:
        """The dialogue is over, or never came to its first turn."""
        replica = self._replica_of.pop(key, None)
        if replica is not None:
            self._count(replica, -1)

    def _count(self, replica: int, change: int) -> None:
        self._load[replica] += change
        heapq.heappush(self._heap, (self._load[replica], replica))
        if len(self._heap) > 8 * len(self._load) + 64:
            self._heap = [(count, replica) for replica, count in self._load.items()]
            heapq.heapify(self._heap)

    def _least_loaded(self) -> int:
        while self._load[self._heap[0][1]] != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][1]


def preferred(key: str, replicas: Sequence[int]) -> int:
    """The replica whose number gives the highest hash with the dialogue's key (rendezvous hashing, Thaler, Ravishankar
    1998): the same in every process, and when one joins or leaves, only the dialogues that it gets or had are moved."""
    return max(replicas, key=lambda number: hashlib.blake2b(f"{key}/{number}".encode(), digest_size=8).digest())
