"""The rollouts of one arm: how many groups an update takes, on which scenarios, and how each ended."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split
from calibrated_rl.errors import Party, RolloutFailure
from calibrated_rl.replay.client import StoreClient
from calibrated_rl.rollout.failures import refuse_mostly_broken
from calibrated_rl.rollout.stream import GroupStream
from calibrated_rl.rollout.users import User
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.training.accounts import LEFT_OVER, NO_SIGNAL, TokenBudget
from calibrated_rl.training.quota import Members, RolloutBatch, filled
from calibrated_rl.training.rollout_source import InFlight, RolloutSource

logger = logging.getLogger(__name__)


def first_budget(inputs: RunInputs, chat: ChatTokens, *, single_turns: bool) -> TokenBudget:
    """Estimated from the length of logged dialogues (or turns) of the policy, until the arm has its own."""
    samples = log_samples(inputs.logs[Split.CALIBRATION][:100], Side.POLICY, chat)
    tokens = sum(int(s.tokens.mask.sum()) for s in samples)
    units = sum(len(np.unique(s.tokens.turns[s.tokens.mask])) for s in samples) if single_turns else len(samples)
    training = inputs.config.training
    return TokenBudget(training.tokens_per_update, training.group_size * tokens / units)


class Rollouts:
    """Collects the groups of an arm's updates, passes them through the replay store, and accounts for each of them."""

    def __init__(
        self, inputs: RunInputs, cluster: Cluster, budget: TokenBudget, arm: str, seed: int, in_flight: InFlight | None
    ) -> None:
        """
        Args:
            budget: how many groups an update takes.
            in_flight: the rollouts in flight at the checkpoint that the arm resumes from.
        """
        self._inputs, self._cluster, self._budget, self._arm, self._seed = inputs, cluster, budget, arm, seed
        self._in_flight = in_flight
        self._source: RolloutSource | None = None
        self.groups_extra: list[str] = []
        """Ids of the groups that were requested in place of dropped ones and of those without signal."""
        self.policy_tokens_discarded = 0
        """Tokens of the policy in groups that were not learned from, since others replaced them
        (``training.extra_groups``)."""
        self._tries: Counter[str] = cluster.collector.statistics.tries_of("rollout")
        """Tries to run a dialogue of training, up to the previous update."""
        self._warned_of_few = False

    @property
    def _max_staleness(self) -> int:
        return self._inputs.config.training.max_staleness

    @property
    def overlap_learning(self) -> bool:
        """Whether groups are in flight while the learner steps."""
        return self._max_staleness > 0 and self._source is not None

    def groups_wanted(self) -> int:
        """Groups that the next update takes to reach its budget of loss tokens."""
        return self._budget.groups()

    def scenarios(self, update: int, count: int) -> list[Scenario]:
        """The first ``count`` of an update, fewer where there are no more: the same for all arms, drawn from the
        calibration split."""
        logs = self._inputs.logs[Split.CALIBRATION]
        random = np.random.default_rng([self._seed, update])
        return [logs[i].scenario for i in random.permutation(len(logs))[:count]]

    def collect(self, update: int, user: User, until: int | None = None) -> RolloutBatch:
        """Groups of dialogues with ``user`` for ``update``. With ``training.max_staleness`` above 0, those of later
        updates begin as well.

        Args:
            user: the same in every call.
            until: the update before which it changes; None: it does not.

        Raises:
            UserError: the user model breaks most of the dialogues.
            RolloutFailure: no group could be completed for another reason.
        """
        if self._source is None:
            self._source = self._start_source(update, user)
        self._warn_of_few(len(self.scenarios(update, self.groups_wanted())))
        return self._checked(self._source.next(update, self.groups_wanted(), until))

    def collect_turns(self, ask: Callable[[int, int], Sequence[Members | None]]) -> RolloutBatch:
        """Groups of single turns, as ``ask`` runs them (``quota.filled``); raises as ``collect``."""
        batch = filled(self.groups_wanted(), self._inputs.config.training.extra_groups, ask)
        self._warn_of_few(batch.requested)
        return self._checked(batch)

    def _start_source(self, update: int, user: User) -> RolloutSource:
        training = self._inputs.config.training
        stream = GroupStream(
            self._cluster.collector, user, group_size=training.group_size, arm=self._arm, seed=self._seed
        )
        self._cluster.on_close(stream.close)  # in case the arm does not finish
        return RolloutSource(
            stream, self.scenarios, max_staleness=training.max_staleness, updates=training.updates, first=update,
            extra=training.extra_groups, state=self._in_flight,
        )  # fmt: skip

    def _warn_of_few(self, available: int) -> None:
        """Warn, once, that the calibration logs are too few for ``training.tokens_per_update``: updates are smaller."""
        if available >= (needed := self.groups_wanted()) or self._warned_of_few:
            return
        self._warned_of_few = True
        logger.warning(
            f"{self._arm} (seed {self._seed}): training.tokens_per_update takes {needed} groups an update, and the "
            f"calibration logs have scenarios or histories for {available}: updates are smaller than that"
        )

    def _checked(self, batch: RolloutBatch) -> RolloutBatch:
        statistics = self._cluster.collector.statistics
        if not batch.groups:
            self._cluster.collector.refuse_nothing("rollout", batch.requested)
        refuse_mostly_broken(statistics.tries_of("rollout") - self._tries, statistics.dropped)
        return batch

    def store(self, update: int, batch: RolloutBatch) -> list[list[Dialogue]]:
        """Put the groups of ``batch`` into the replay store, and take as many out that are fresh enough: the same or,
        after a restart, those that a lost attempt at the update had left there.

        Raises:
            RolloutFailure: none was fresh enough.
        """
        store: StoreClient = self._cluster.store
        store.append([dialogue for group in batch.groups for dialogue in group])
        groups = store.sample(len(batch.groups), arm=self._arm, update=update, max_staleness=self._max_staleness)
        if not groups:
            raise RolloutFailure(f"none of {len(batch.groups)} groups was fresh enough")
        return groups

    def account_for(
        self, update: int, batch: RolloutBatch, groups: Sequence[Sequence[Dialogue]], requested: Mapping[int, int]
    ) -> dict[str, float]:
        """Record what ``jobs/audit.py`` checks: every group that was requested, learned from or dropped for a reason.

        Args:
            groups: what the store has handed out.
            requested: groups requested at first, by update that is done.

        Returns:
            metrics: groups requested in place of others, and the shares of tries that each party broke since the last
            update.
        """
        statistics, name = self._cluster.collector.statistics, f"{self._arm}-{self._seed}"
        for group in batch.discarded:
            statistics.drop_group(group[0].group_id, NO_SIGNAL)
            self.policy_tokens_discarded += sum(
                int(d.policy_tokens.mask.sum()) for d in group if d.policy_tokens is not None
            )
        extra = [f"{name}-{update}-{number}" for number in batch.extra]
        # Groups that a lost attempt at this update requested on top, and the store kept, count as requested, too.
        first = {**requested, update: batch.requested}
        for opens, *_ in groups:
            statistics.deliver_group(opens.group_id)
            number = int(opens.group_id.rpartition("-")[2])
            if number >= first.get(opens.update, number + 1):
                extra.append(opens.group_id)
        self.groups_extra = list(dict.fromkeys([*self.groups_extra, *extra]))
        tries = statistics.tries_of("rollout")
        tries_since, self._tries = tries - self._tries, tries
        total = max(1, tries_since.total())
        failed = {
            party: tries_since[party] for party in Party if tries_since[party] or party in (Party.USER, Party.ENGINE)
        }
        return {
            "groups_extra": float(len(batch.extra)), "groups_discarded": float(len(batch.discarded)),
            **{f"failed_share_{party}": count / total for party, count in failed.items()},
        }  # fmt: skip

    def busy_seconds(self) -> float:
        """How long groups were in flight since the last call."""
        return 0.0 if self._source is None else self._source.busy_seconds()

    def in_flight(self, dropped: Mapping[str, str]) -> InFlight | None:
        """For a checkpoint; None: no rollout has begun.

        Args:
            dropped: ids of groups that were dropped.
        """
        return None if self._source is None else self._source.state(f"{self._arm}-{self._seed}", dropped)

    def close(self) -> None:
        """The arm is done: end what is in flight, and account for what nobody learned from. The store has groups that
        were not handed out where those of a lost attempt at an update were, in their place."""
        if self._source is not None:
            self._source.close()
        for group_id in sorted(self._cluster.store.undelivered(self._arm)):
            self._cluster.collector.statistics.drop_group(group_id, LEFT_OVER)
