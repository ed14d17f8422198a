"""Which weights the replicas of a role should have, and when they get them; ``weight_sync`` transports them."""

import logging
from collections.abc import Callable

from ray.exceptions import ObjectLostError

from calibrated_rl.errors import PartLost, UserError, first_line
from calibrated_rl.inference.handle import UPDATE_FAILURES, ReplicaHandle, cause_of
from calibrated_rl.inference.membership import Decision, SendWeights
from calibrated_rl.inference.replica_group import LoadedWeights, ReplicaGroup
from calibrated_rl.weight_sync.base import WeightUpdate

logger = logging.getLogger(__name__)


class WeightPublisher:
    """Sends the newest weights to all that serve, and to each replica that is about to."""

    def __init__(self, group: ReplicaGroup, timeout_s: float) -> None:
        """``timeout_s``: within which a replica must have loaded them."""
        self._group, self._timeout_s = group, timeout_s
        self.update: WeightUpdate | None = None
        """The weights that were published last."""

    def announce(self, update: WeightUpdate) -> None:
        """From here on, a replica is only admitted with these weights."""
        with self._group.changed:
            self.update = update
            self._group.membership.published()

    def send(self) -> None:
        """Give the newest weights to all replicas that serve. One that does not take them is marked unavailable.

        Raises:
            PartLost: the weights are gone.
            UserError: a replica cannot reach memory that the learner shares.
        """
        group, update = self._group, self.update
        assert update is not None, "no weights have been announced"
        with group.changed:
            incarnations = {index: group.membership.incarnation(index) for index in group.membership.serving}
            calls = {index: group.fleet.handle(index).update_weights(update) for index in incarnations}
        logger.debug(f"sending weights of version {update.version} to the {group.role} replicas {sorted(incarnations)}")
        for index, call in calls.items():
            try:
                call.result(self._timeout_s)
            except UPDATE_FAILURES as error:
                if isinstance(error, UserError):
                    raise UserError(f"{group.role}: {getattr(error, 'cause', error)}") from error
                self.refuse_lost_weights(error)
                group.mark_unavailable(index, incarnations[index], cause_of(error))

    def bring_up_to_date(self, replica: ReplicaHandle, report: Callable[[LoadedWeights | None], Decision]) -> Decision:
        """Give a replica the newest weights, and again those that are published meanwhile, until it is admitted or
        discarded.

        Args:
            report: reports to ``Membership`` what the replica has loaded.

        Raises:
            RayError, TimeoutError: the replica did not take them.
        """
        decision = report(None)
        while isinstance(decision, SendWeights):
            with self._group.changed:
                publication, update = self._group.membership.publication, self.update
            if update is not None:
                replica.update_weights(update).result(self._timeout_s)
            decision = report(LoadedWeights(publication, 0 if update is None else update.version))
        return decision

    def refuse_lost_weights(self, error: Exception) -> None:
        """Raise for weights that were lost with their machine: that is no fault of the replica that should get them.

        Raises:
            PartLost: that is what ``error`` says.
        """
        if isinstance(error, ObjectLostError):
            raise PartLost(f"the weights of {self._group.role} are lost: {first_line(error)}") from error

    def close(self) -> None:
        """Release the weights."""
        self.update = None
