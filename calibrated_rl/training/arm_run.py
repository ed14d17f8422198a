"""One arm with one seed in training: its state, and the parts of one update.

An update, as each file in ``arms/`` spells it out: *measure* how far training is from real dialogues (``shift``),
*collect* groups of rollouts, *store* them, give credit (``policy.advantages``), *step* the learner, *sync* the
replicas, *log* and *checkpoint*.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.endpoints.errors import EndpointStopped
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.health.limits import Unhealthy
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.rollout.statistics import COUNTED, cut_shares
from calibrated_rl.rollout.users import User
from calibrated_rl.training.accounts import human_turns_of, signal_notice, tokens_of_users, why_nothing_was_learned
from calibrated_rl.training.arm_log import ArmLog
from calibrated_rl.training.checkpoints import ArmCheckpoints, ArmState, Saved
from calibrated_rl.training.critic import Critic
from calibrated_rl.training.health_watch import HealthWatch
from calibrated_rl.training.policy_update import CreditedSamples, PolicyUpdate
from calibrated_rl.training.quota import Members, RolloutBatch
from calibrated_rl.training.rollout_source import InFlight
from calibrated_rl.training.rollouts import Rollouts, first_budget
from calibrated_rl.training.run_parts import RunParts
from calibrated_rl.training.shift_watch import Measurement, ShiftWatch, overall
from calibrated_rl.training.simulator_calibration import SimulatorCalibration
from calibrated_rl.training.timers import UpdateTimers

logger = logging.getLogger(__name__)


class ArmRun:
    """The constructor brings the policy and both engines to the common start of all arms or, where the arm was stopped,
    to its last checkpoint."""

    def __init__(self, run: RunParts, name: str, seed: int, *, single_turns: bool = False) -> None:
        """``single_turns``: the arm learns from single turns, not from whole dialogues."""
        self.run, self.name, self.seed = run, name, seed
        self.updates = self.policy_tokens = self.user_tokens = self.human_turns = 0
        """Updates done; the policy's tokens with loss; the simulator's tokens; human replies during training."""
        cluster, inputs = run.cluster, run.inputs
        self._checkpoints = ArmCheckpoints(inputs.folder, name, seed, inputs.config.training.checkpoints_kept)
        saved = self._checkpoints.latest()
        self.timers = UpdateTimers(saved.state.seconds if saved else 0.0)
        self.shift = ShiftWatch(inputs, run.models, cluster, run.start, name, seed)
        self.shift_records: list[dict[str, Any]] = []
        """How far training was from real dialogues, one record a measurement; filled by ``close``."""
        make_critic = partial(
            Critic, seed=seed, checkpoint=saved.learner if saved else None, learner=cluster.learner, logs=inputs.logs,
            chat=run.models.policy.chat, start=run.start.folder, fits=run.fits,
        )  # fmt: skip
        self.policy = PolicyUpdate(
            inputs.config, cluster.learner, cluster.policy, self.timers, make_critic=make_critic, arm=name
        )
        self.calibration = SimulatorCalibration(run, self)
        self._budget = first_budget(inputs, run.models.policy.chat, single_turns=single_turns)
        if saved is None:
            self._begin()
        else:
            self._resume(saved)
        self.rollouts = Rollouts(inputs, cluster, self._budget, name, seed, saved.state.in_flight if saved else None)
        if saved is not None:
            self.rollouts.policy_tokens_discarded = saved.state.policy_tokens_discarded
            self.rollouts.groups_extra = list(saved.state.groups_extra)
        self._health = HealthWatch(run.health, inputs.config.health, f"{name} (seed {seed})")
        self._log = ArmLog(inputs.folder, name, seed, list(saved.state.metrics) if saved else [], self.updates)
        if (unhealthy := self._unhealthy()) is not None:  # it was paused, and its thresholds are as they were
            self._log.close()
            raise unhealthy
        parity = run.check_parity()  # both engines have the arm's weights, and nothing has been sampled yet
        if saved is None:
            self.log(parity)
        self._elastic = run.elastic()
        self.timers.start_update()

    def _begin(self) -> None:
        run, training = self.run, self.run.inputs.config.training
        run.cluster.store.open(f"{self.name}-{self.seed}")
        rate = training.learning_rates.get(self.name, training.learning_rate)
        optimizer = training.optimizer.at(rate, training.warmup_steps)
        run.cluster.learner.load(POLICY, run.start.folder, optimizer=optimizer, seed=self.seed)
        self.policy.sync(version=0)
        # Versions start at 0 in each arm: otherwise what dialogues record of it would depend on earlier arms.
        run.simulator.load(run.simulator.uncalibrated, version=0)

    def _resume(self, saved: Saved) -> None:
        run, state = self.run, saved.state
        logger.info(f"{self.name} (seed {self.seed}) resumes after update {state.updates}")
        run.cluster.store.open(f"{self.name}-{self.seed}", rewind_to=state.updates)
        run.start.log_probs_by_log |= saved.log_probs
        served = run.inputs.folder / state.simulator if state.simulator else run.simulator.uncalibrated
        run.simulator.load(served, state.simulator_version)
        run.cluster.learner.restore(saved.learner)
        self.policy.sync(version=state.updates)
        self.updates, self.policy_tokens = state.updates, state.policy_tokens
        self.user_tokens, self.human_turns = state.user_tokens, state.human_turns
        self.shift.done = list(state.shift)
        self.calibration.schedule.state = state.alignments
        self._budget.per_group, self._budget.measured = state.tokens_per_group, state.seen_own_tokens
        counted = {name: getattr(state, name) for name in (*COUNTED, "groups_dropped")}
        run.cluster.collector.statistics.restore(counted)

    # ---- one update --------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether updates are left to do."""
        return self.updates < self.run.inputs.config.training.updates

    def measure(self, user: User | None) -> Measurement | None:
        """The measurement of shift that is due before the next update, for ``step``; None: none is. After the last
        update there is no step that it could run beside: it is run at once.

        Args:
            user: whom the arm trains with; None: nobody answers it.
        """
        measurement = self.shift.due(self.updates, user)
        if measurement is not None and isinstance(user, EndpointUser):
            # Not beside the learner's step: where the endpoint stops, the update has not begun.
            with self.checkpoint_when_stopped(), self.timers.measure("measuring"):
                measurement.run_rollouts()
        if measurement is None or self.running:
            return measurement
        with self.timers.measure("measuring"):
            measurement.run()
        self.log({"seconds_measuring": self.timers.seconds["measuring"]})
        return None

    def collect(self, user: User, until: int | None = None) -> RolloutBatch:
        """Groups of rollouts with ``user`` for the next update; ``until``: the update before which ``user`` changes."""
        with self.checkpoint_when_stopped():
            return self.rollouts.collect(self.updates, user, until)

    def store(self, batch: RolloutBatch) -> list[Members]:
        """The groups that the next update learns from, after a pass through the replay store."""
        self.timers.rollouts_ready()
        if not self.rollouts.overlap_learning:
            self._elastic.rollouts_end()
        requested = {
            int(metric["update"]): int(metric["value"])
            for metric in self.metrics if metric["name"] == "groups_requested"
        }  # fmt: skip
        with self.timers.measure("store"):
            groups = self.rollouts.store(self.updates, batch)
            self._accounts = self.rollouts.account_for(self.updates, batch, groups, requested)
        return groups

    def advantages(
        self, groups: Sequence[Members], penalties: Sequence[Sequence[float]] | None = None
    ) -> CreditedSamples:
        """The dialogues of ``groups`` with their credit; ``penalties``: taken from the return of each, for the credit
        alone."""
        return self.policy.advantages(groups, self.updates, penalties)

    def step(self, credited: CreditedSamples, measurement: Measurement | None = None) -> dict[str, float]:
        """The learner's step, with the ``measurement`` that is due beside it; its metrics."""
        return self.policy.step(credited, measurement)

    def sync(self) -> None:
        """Send the learner's weights to the replicas; then only the metrics of the update are missing."""
        self.policy.sync(version=self.updates + 1)

    def log_update(
        self, batch: RolloutBatch, groups: Sequence[Members], credited: CreditedSamples, metrics: dict[str, float]
    ) -> None:
        """Count what the update cost, log its metrics, and advance to the next update."""
        tokens = credited.tokens
        self._budget.saw(tokens, len(groups))
        self.policy_tokens += tokens
        self.user_tokens += sum(map(tokens_of_users, [*groups, *batch.discarded]))
        self.human_turns += sum(map(human_turns_of, [*groups, *batch.discarded]))
        busy = None
        if self.rollouts.overlap_learning:
            busy = self.rollouts.busy_seconds()
            self._elastic.rollouts_end()
        seconds = self.timers.metrics(busy)
        learning = seconds["seconds_learning"] + seconds["seconds_weight_sync"]
        replicas = self._elastic.after_update(
            seconds["seconds_rollout"], learning, seconds["seconds_waiting"] + learning
        )
        # Discarded groups are part of what the arm earned: without them, rewards would be those of a selection.
        discarded = [dialogue for group in batch.discarded for dialogue in group]
        dialogues = [*(dialogue for group in groups for dialogue in group), *discarded]
        rewards = credited.rewards + [d.outcome.episode_return for d in discarded if d.outcome is not None]
        statistics = self.run.cluster.collector.statistics
        self.log(
            metrics
            | replicas
            | credited.staleness.metrics()
            | {
                "reward": float(np.mean(rewards)),
                "success": float(np.mean([d.outcome.success for d in dialogues if d.outcome])),
                "turns": float(np.mean([len(d.user_turn_indices()) for d in dialogues])),
                "groups_with_signal": credited.groups_with_signal / credited.groups,
                "groups_requested": float(batch.requested),
            }
            | self._accounts
            | self.run.inputs.endpoints.metrics()
            | cut_shares(groups)
            | self._health.count([*groups, *batch.discarded], statistics.take_broken("rollout"))
            | seconds
        )
        self.updates += 1
        self._report()

    def checkpoint(self) -> None:
        """Every ``training.checkpoint_every`` updates: keep what it takes to resume from here. It is written while
        training continues; the next checkpoint waits for it. Timers measure the next update from here on.

        Raises:
            Unhealthy: the simulator makes a mistake more often than ``health.thresholds`` allows; there is a
            checkpoint.
        """
        every, unhealthy = self.run.inputs.config.training.checkpoint_every, self._unhealthy()
        if self.running and (unhealthy is not None or (every and self.updates % every == 0)):
            self._checkpoint(every or self.updates)
        if unhealthy is not None:
            if self.running:
                self.run.writer.wait()
                self._log.close()
                raise unhealthy
            logger.warning(f"{self.name} (seed {self.seed}), in its last update: {unhealthy.reasons}")
        self._elastic.rollouts_begin()
        self.timers.start_update()

    def _unhealthy(self) -> Unhealthy | None:
        """Why the arm is to be paused after its last update; None: it is not."""
        if not self.updates:
            return None
        last = self._log.of_update(self.updates - 1)
        return self._health.pause(last, self.updates, str(self._checkpoints.folder))

    @contextmanager
    def checkpoint_when_stopped(self) -> Iterator[None]:
        """Between two updates: where an endpoint stops within, keep a checkpoint of the updates that are done."""
        in_flight = self.rollouts.in_flight(self.run.cluster.collector.statistics.counts()["groups_dropped"])
        try:
            yield
        except EndpointStopped:
            if self.updates:
                self._checkpoint(max(1, self.run.inputs.config.training.checkpoint_every), before=in_flight)
                logger.info(f"{self.name} (seed {self.seed}) keeps a checkpoint after update {self.updates}")
            raise

    def _checkpoint(self, every: int, before: InFlight | None = None) -> None:
        """``before``: the groups in flight before the update that was given up; None: no update was."""
        run, timers = self.run, self.timers
        with timers.measure("waiting_for_shift"):
            records = list(self.shift.records())  # waits for those that are still being estimated, as a rule none
        with timers.measure("checkpoint"):
            # Copy all that training will change; the files, which take long, are written while training continues.
            run.writer.wait()
            run.cluster.learner.snapshot(self.policy.slots)
        self.log(
            {f"seconds_{name}": timers.seconds[name] for name in ("waiting_for_shift", "checkpoint")},
            self.updates - 1,
        )
        rewards = self._log.series("reward", since=self.updates - every)
        counted = run.cluster.collector.statistics.counts()
        state = ArmState(
            updates=self.updates, policy_tokens=self.policy_tokens, user_tokens=self.user_tokens,
            human_turns=self.human_turns, tokens_per_group=self._budget.per_group,
            seen_own_tokens=self._budget.measured,
            seconds=timers.total, simulator=run.simulator.path_in_run, simulator_version=run.simulator.version,
            reward=float(np.mean(rewards)) if rewards else None, metrics=list(self.metrics), shift=records,
            policy_tokens_discarded=self.rollouts.policy_tokens_discarded,
            groups_extra=list(self.rollouts.groups_extra), alignments=self.calibration.schedule.state,
            in_flight=before or self.rollouts.in_flight(counted["groups_dropped"]), **counted,
        )  # fmt: skip
        log_probs, description = (
            dict(run.start.log_probs_by_log),
            f"the checkpoint of {self.name} (seed {self.seed}) at {self.updates}",
        )
        write_learner = run.cluster.learner.write_snapshot
        run.writer.write((description, lambda: self._checkpoints.save(state, log_probs, write_learner)))

    # ---- metrics and records --------------------------------------------------------------------------

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All that were logged, in order."""
        return self._log.metrics

    @property
    def seconds(self) -> float:
        """Spent on the arm, also before it was stopped."""
        return self.timers.total

    def log(self, values: dict[str, float], update: int | None = None) -> None:
        """Log metrics of an update, by default of the current one."""
        self._log.add(values, self.updates if update is None else update)

    def _report(self) -> None:
        last = self._log.of_update(self.updates - 1)
        updates, arm_name = self.run.inputs.config.training.updates, f"{self.name} (seed {self.seed})"
        self.run.inputs.progress.show(arm_name, self.updates, updates)
        entropy = f"entropy {last['entropy']:.2f}" if "entropy" in last else why_nothing_was_learned(last)
        summary = f"reward {last['reward']:+.3f}, success {last['success']:.2f}, {entropy}"
        logger.info(f"{arm_name} update {self.updates}/{updates}: {summary}")
        if notice := signal_notice(self._log.series("groups_with_signal")):
            logger.warning(f"{arm_name}: {notice}")

    def latest_dialogues(self) -> list[Dialogue]:
        """The dialogues of the previous update."""
        return self.run.cluster.store.rollouts_of(self.name, self.updates - 1)

    def close(self) -> None:
        """End the rollouts in flight, fetch the measurements of shift, and flush the TensorBoard files."""
        self.rollouts.close()
        self.shift_records = self.shift.records()
        for record in self.shift_records:
            self.log(overall(record), record["update"])
        self._log.close()
