"""Brings replicas into service with the newest weights: pending ones, and lost ones that answer again."""

import logging
import time
from functools import partial

from calibrated_rl.inference.handle import UPDATE_FAILURES, ReplicaHandle, cause_of
from calibrated_rl.inference.membership import Admit, Decision
from calibrated_rl.inference.placement import PlacedReplica
from calibrated_rl.inference.publishing import WeightPublisher
from calibrated_rl.inference.replica_group import LoadedWeights, ReplicaGroup

logger = logging.getLogger(__name__)


class Admission:
    """Waits for a replica to load its model and its weights, then reports it to the group."""

    def __init__(
        self, group: ReplicaGroup, publisher: WeightPublisher, *,
        timeout_s: float, start_timeout_s: float, cache_mib: int,
    ) -> None:  # fmt: skip
        """
        Args:
            timeout_s: for a lost replica that answers again to report its KV cache.
            start_timeout_s: for a pending one to load its model, its machine included.
            cache_mib: requested size of each KV cache.
        """
        self._group, self._publisher = group, publisher
        self._timeout_s, self._start_timeout_s, self._cache_mib = timeout_s, start_timeout_s, cache_mib

    def readmit(self, lost: frozenset[int]) -> None:
        """Bring those of the ``lost`` replicas that answer back into service.

        Raises:
            PartLost: the weights that they should get are gone.
        """
        for index in self._group.fleet.answering(lost):
            self._readmit(index)

    def _readmit(self, index: int) -> None:
        """Bring a restarted replica, which has the weights it was first started with, back into service."""
        group, publisher = self._group, self._publisher
        replica, incarnation = group.fleet.handle(index), group.membership.incarnation(index)
        try:
            self.warn_if_small(replica.start().result(self._timeout_s))
            publisher.bring_up_to_date(replica, partial(group.back, index, incarnation))
        except UPDATE_FAILURES as error:
            publisher.refuse_lost_weights(error)
            group.mark_unavailable(index, incarnation, cause_of(error))

    def admit(self, pending: int, placed: PlacedReplica) -> None:
        """Let a pending replica join once it has loaded its model; abandon one that does not."""
        group, publisher, began = self._group, self._publisher, time.monotonic()
        replica, version = ReplicaHandle(placed.actor), 0

        def report(loaded: LoadedWeights | None) -> Decision:
            nonlocal version
            version = 0 if loaded is None else loaded.version
            return self.join(pending, placed, loaded)

        try:
            self.warn_if_small(replica.start().result(self._start_timeout_s))
            decision = publisher.bring_up_to_date(replica, report)
        except UPDATE_FAILURES as error:
            with group.changed:
                if not group.membership.failed(pending):
                    return
            placed.end()
            seconds = time.monotonic() - began
            logger.warning(f"abandoned a pending {group.role} replica after {seconds:.0f} s: {cause_of(error)}")
            return
        if isinstance(decision, Admit):
            logger.info(
                f"{group.role} replica {decision.index} joined after {time.monotonic() - began:.0f} s, "
                f"with weights of version {version}"
            )

    def join(self, pending: int, placed: PlacedReplica, loaded: LoadedWeights | None) -> Decision:
        """Report that a pending replica has loaded its model and these weights."""
        return self._group.join(pending, placed, loaded)

    def warn_if_small(self, cache_mib: int) -> None:
        """Warn that a replica's KV cache is smaller than requested."""
        if cache_mib < self._cache_mib:
            logger.warning(
                f"a {self._group.role} replica started with a KV cache of {cache_mib} MiB instead of "
                f"{self._cache_mib} MiB"
            )
