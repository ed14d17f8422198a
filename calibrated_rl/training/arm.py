"""One arm in training: where every arm starts, what an update is, what it cost and how it went."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split
from calibrated_rl.errors import Party, RolloutFailure
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.advantages import group_advantages, has_signal
from calibrated_rl.learner.config import OptimizerConfig
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY, START
from calibrated_rl.learner.staleness import Staleness, fresh_turns
from calibrated_rl.rollout.failures import refuse_mostly_broken
from calibrated_rl.rollout.statistics import COUNTED, cut_shares
from calibrated_rl.rollout.stream import GroupStream
from calibrated_rl.run.parts import STORE_TIMEOUT_S, Parts
from calibrated_rl.tasks.base import ScriptedHuman
from calibrated_rl.training.accounts import (
    LEFT_OVER,
    NO_SIGNAL,
    TokenBudget,
    signal_notice,
    tokens_of_users,
    turns_of_people,
    why_nothing_was_learned,
)
from calibrated_rl.training.ahead import AheadState, RolloutsAhead
from calibrated_rl.training.checkpoints import ArmCheckpoints, ArmState, Saved
from calibrated_rl.training.measuring import ShiftWatch, overall
from calibrated_rl.training.quota import Members, RolloutBatch, filled


class Arm:
    """One arm with one seed. Making it puts the policy and both engines where every arm starts, or, where the arm was
    stopped, where its last checkpoint was taken."""

    def __init__(self, parts: Parts, name: str, seed: int, *, single_turns: bool = False) -> None:
        """``single_turns``: the arm learns from single turns, not from whole dialogues."""
        self.parts, self.name, self.seed = parts, name, seed
        self.updates = self.policy_tokens = self.user_tokens = 0
        self.human_turns = 0
        """Replies that people (here: scripted ones) gave during training."""
        self.policy_tokens_discarded = 0
        """Tokens of the policy in groups that were not learned from, since others took their place
        (``training.extra_groups``)."""
        self.groups_extra: list[str] = []
        """Ids of the groups that were asked for in place of dropped ones and of such without signal."""
        self._left_over: set[str] = set()
        """Groups in the store in whose place it handed out what a lost attempt at the update had left there."""
        self._tries: Counter[str] = Counter()
        """Tries to run a dialogue of training, up to the update before."""
        self.metrics: list[dict[str, Any]] = []
        self.shift: list[dict[str, Any]] = []
        """How far training was from real dialogues, one record a measurement; filled by ``close``."""
        self._watch = ShiftWatch(parts, name, seed)
        self._measuring_due = False
        self._user: ReplicaPool | ScriptedHuman | None = None
        """Whom the policy meets in a measurement that is due."""
        self._budget = self._first_budget(single_turns)
        self._ahead: RolloutsAhead | None = None
        """Rollouts that run on while the learner steps; None: in turn with it."""
        self._ahead_before: AheadState | None = None
        """What the checkpoint says of them that the arm goes on from."""
        self._told_of_few = False
        self._began = time.monotonic()
        self._checkpoints = ArmCheckpoints(parts.folder, name, seed, parts.config.training.checkpoints_kept)
        if (saved := self._checkpoints.latest(parts.say)) is None:
            self._begin()
        else:
            self._go_on(saved)
        folder = parts.folder / "tensorboard" / f"{name}-{seed}"
        self._tensorboard = SummaryWriter(str(folder), purge_step=self.updates or None)
        parity = parts.check_parity()  # both engines have the arm's weights, and nothing has been sampled yet
        if saved is None:
            self.log(parity)
        self._elastic = parts.elastic()
        self._at = time.monotonic()

    def _begin(self) -> None:
        parts, training = self.parts, self.parts.config.training
        parts.open_store(f"{self.name}-{self.seed}")
        rate = training.learning_rates.get(self.name, training.learning_rate)
        optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=2)
        parts.learner.load(POLICY, parts.start_folder, optimizer=optimizer, seed=self.seed)
        parts.policy.publish(parts.learner.weights(POLICY), 0)
        # Counted anew in each arm: otherwise what a dialogue says of its simulator would hang on what ran before.
        parts.use_simulator(parts.uncalibrated_folder, version=0)

    def _go_on(self, saved: Saved) -> None:
        parts, state = self.parts, saved.state
        parts.say(f"{self.name} (seed {self.seed}) goes on after update {state.updates}")
        parts.open_store(f"{self.name}-{self.seed}", rewind_to=state.updates)
        parts.at_start |= saved.log_probs
        served = parts.folder / state.simulator if state.simulator else parts.uncalibrated_folder
        parts.use_simulator(served, state.simulator_version)
        parts.learner.restore(saved.learner)
        parts.policy.publish(parts.learner.weights(POLICY), state.updates)
        self.updates, self.policy_tokens = state.updates, state.policy_tokens
        self.user_tokens, self.human_turns = state.user_tokens, state.human_turns
        self.metrics, self._watch.done = list(state.metrics), list(state.shift)
        self._budget.per_group, self._budget.seen = state.tokens_per_group, state.seen_own_tokens
        self._ahead_before = state.ahead
        self._began -= state.seconds
        self.policy_tokens_discarded, self.groups_extra = state.policy_tokens_discarded, list(state.groups_extra)
        parts.collector.statistics.restore({name: getattr(state, name) for name in (*COUNTED, "groups_dropped")})
        self._tries = parts.collector.statistics.tries_of("rollout")

    def keep_checkpoint(self) -> None:
        """Every ``training.checkpoint_every`` updates: keep what it takes to go on from here. It is written while
        training goes on; the next one waits for it."""
        every = self.parts.config.training.checkpoint_every
        if not every or self.updates % every or not self.running:
            return
        parts, began = self.parts, time.monotonic()
        records = list(self._watch.records())  # those still being estimated are waited for, as a rule none
        fetched = time.monotonic()
        # All that training will change is copied here; what takes long, the files, is written while it goes on.
        parts.scribe.wait()
        parts.learner.snapshot([POLICY])
        self.log(
            {"seconds_waiting_for_shift": fetched - began, "seconds_checkpoint": time.monotonic() - fetched},
            self.updates - 1,
        )
        rewards = [m["value"] for m in self.metrics if m["name"] == "reward" and m["update"] >= self.updates - every]
        found = parts.collector.statistics.found()
        ahead = self._ahead.state(f"{self.name}-{self.seed}", found["groups_dropped"]) if self._ahead else None
        state = ArmState(
            updates=self.updates, policy_tokens=self.policy_tokens, user_tokens=self.user_tokens,
            human_turns=self.human_turns, tokens_per_group=self._budget.per_group, seen_own_tokens=self._budget.seen,
            seconds=self.seconds, simulator=parts.served_below_run(), simulator_version=parts.simulator.version,
            reward=float(np.mean(rewards)) if rewards else None, metrics=list(self.metrics), shift=records,
            policy_tokens_discarded=self.policy_tokens_discarded, groups_extra=list(self.groups_extra), ahead=ahead,
            **found,
        )  # fmt: skip
        log_probs, what = dict(parts.at_start), f"the checkpoint of {self.name} (seed {self.seed}) at {self.updates}"
        parts.write_aside((what, lambda: self._checkpoints.save(state, log_probs, parts.learner.write_snapshot)))

    @property
    def seconds(self) -> float:
        """Spent on the arm, in all sittings."""
        return time.monotonic() - self._began

    def _first_budget(self, single_turns: bool) -> TokenBudget:
        """Goes by the length of logged dialogues (or turns) of the policy, until the arm has seen its own."""
        samples = log_samples(self.parts.logs[Split.CALIBRATION][:100], Side.POLICY, self.parts.policy_chat)
        tokens = sum(int(s.tokens.mask.sum()) for s in samples)
        units = sum(len(np.unique(s.tokens.turns[s.tokens.mask])) for s in samples) if single_turns else len(samples)
        training = self.parts.config.training
        return TokenBudget(training.tokens_per_update, training.group_size * tokens / units)

    @property
    def running(self) -> bool:
        """Whether updates are left to do."""
        return self.updates < self.parts.config.training.updates

    def groups_wanted(self) -> int:
        """Groups that the next update takes to reach its budget of loss tokens."""
        return self._budget.groups()

    def scenarios(self, update: int | None = None, count: int | None = None) -> list[Scenario]:
        """Those of an update, by default of the next one as many as it wants: the same for all arms, drawn from the
        calibration split."""
        logs = self.parts.logs[Split.CALIBRATION]
        random = np.random.default_rng([self.seed, self.updates if update is None else update])
        wanted = self.groups_wanted() if count is None else count
        return [logs[i].scenario for i in random.permutation(len(logs))[:wanted]]

    def collect(self, user: ReplicaPool | ScriptedHuman, until: int | None = None) -> RolloutBatch:
        """Groups of dialogues with ``user`` for the next update. With ``training.max_staleness`` above 0, those of
        later updates begin as well.

        Args:
            until: the update before which the user model changes; None: it does not.

        Raises:
            UserError: the user model breaks most of the dialogues.
            RolloutFailure: no group could be completed for another reason.
        """
        parts, training = self.parts, self.parts.config.training
        if not training.max_staleness:

            def ask(first: int, count: int) -> list[Members | None]:
                scenarios = self.scenarios(count=first + count)[first:]
                return parts.collector.groups(
                    scenarios, user, group_size=training.group_size, arm=self.name, update=self.updates,
                    seed=self.seed, first=first,
                )  # fmt: skip

            return self.fill(ask)
        if self._ahead is None:
            stream = GroupStream(
                parts.collector, user, group_size=training.group_size, arm=self.name, seed=self.seed
            )
            parts.on_stop(stream.close)  # where the arm does not come to its end
            self._ahead = RolloutsAhead(
                stream, self.scenarios, max_staleness=training.max_staleness, updates=training.updates,
                first=self.updates, extra=training.extra_groups, state=self._ahead_before,
            )  # fmt: skip
        self._tell_if_few(len(self.scenarios()))
        return self._checked(self._ahead.next(self.updates, self.groups_wanted(), until))

    def fill(self, ask: Callable[[int, int], Sequence[Members | None]]) -> RolloutBatch:
        """The groups of the next update, as ``ask`` runs them (``quota.filled``); raises as ``collect``."""
        batch = filled(self.groups_wanted(), self.parts.config.training.extra_groups, ask)
        self._tell_if_few(batch.requested)
        return self._checked(batch)

    def _tell_if_few(self, there: int) -> None:
        """Say, once, that the calibration logs are too few for ``training.tokens_per_update``: updates are smaller."""
        if there >= (wanted := self.groups_wanted()) or self._told_of_few:
            return
        self._told_of_few = True
        self.parts.say(
            f"{self.name} (seed {self.seed}): training.tokens_per_update takes {wanted} groups an update, and the "
            f"calibration logs have scenarios or histories for {there}: updates are smaller than that"
        )

    def _checked(self, batch: RolloutBatch) -> RolloutBatch:
        statistics = self.parts.collector.statistics
        if not batch.groups:
            self.parts.collector.refuse_nothing("rollout", batch.requested)
        refuse_mostly_broken(statistics.tries_of("rollout") - self._tries, statistics.dropped)
        return batch

    def _through_the_store(self, groups: Sequence[Sequence[Dialogue]]) -> list[list[Dialogue]]:
        """As many groups as came, or with rollouts that run ahead those that are fresh enough."""
        self.parts.keep([dialogue for group in groups for dialogue in group])
        named = {"update": self.updates, "arm": self.name}
        if self._ahead is None:
            return self.parts.ask_store("sample", len(groups), max_staleness=0, timeout_s=STORE_TIMEOUT_S, **named)  # type: ignore[no-any-return]
        most = self.parts.config.training.max_staleness
        found: list[list[Dialogue]] = self.parts.ask_store("sample_ready", len(groups), max_staleness=most, **named)
        if not found:
            raise RolloutFailure(f"none of {len(groups)} groups was fresh enough")
        return found

    def learn(self, batch: RolloutBatch) -> None:
        """One update of the policy on complete groups that go through the replay store, its sync, and a line."""
        parts, config, began = self.parts, self.parts.config.training, time.monotonic()
        if self._ahead is None:
            self._elastic.rollouts_end()
        groups = self._through_the_store(batch.groups)
        asked = self._account_for(batch, groups)
        stored = time.monotonic()
        samples, rewards, signal, staleness = [], [], 0, Staleness()
        for group in groups:
            values = [d.outcome.episode_return for d in group if d.outcome is not None]
            signal += has_signal(values)
            rewards += values
            for dialogue, advantage in zip(group, group_advantages(values, config.advantage), strict=True):
                assert dialogue.policy_tokens is not None
                tokens, own = fresh_turns(dialogue.policy_tokens, self.updates, config.max_staleness)
                staleness += own
                samples.append(
                    Sample(tokens=tokens, advantage=float(advantage), name=dialogue.id, group=dialogue.group_id)
                )
        # The arm earned what was put aside, too: without it, rewards would be those of a selection.
        aside = [dialogue for group in batch.discarded for dialogue in group]
        rewards += [d.outcome.episode_return for d in aside if d.outcome is not None]
        scoring = time.monotonic()
        if parts.uses_reference:
            temperature = parts.config.policy.sampling.temperature
            reference = parts.learner.log_probs(START, [s.tokens for s in samples], temperature)
            samples = [replace(s, reference_logprobs=r) for s, r in zip(samples, reference, strict=True)]
        scored = time.monotonic()
        metrics = self._step_and_measure(samples)
        stepped = time.monotonic()
        parts.policy.publish(parts.learner.weights(POLICY), self.updates + 1)
        dialogues = [dialogue for group in groups for dialogue in group]
        learned = sum(int(s.tokens.mask.sum()) for s in samples)
        self._budget.saw(learned, len(groups))
        self.policy_tokens += learned
        self.user_tokens += sum(map(tokens_of_users, [*groups, *batch.discarded]))
        self.human_turns += sum(map(turns_of_people, [*groups, *batch.discarded]))
        waiting, learning = began - self._at, scored - began + metrics.pop("seconds_step")
        syncing, rollout, measuring = time.monotonic() - stepped, waiting, metrics.get("seconds_measuring", 0.0)
        if self._ahead is not None:
            rollout = self._ahead.busy_seconds()
            self._elastic.rollouts_end()
        self.log(
            metrics
            | self._elastic.after_update(rollout, learning + syncing, waiting + learning + syncing)
            | staleness.metrics()
            | {
                "reward": float(np.mean(rewards)),
                "success": float(np.mean([d.outcome.success for d in [*dialogues, *aside] if d.outcome])),
                "turns": float(np.mean([len(d.user_turn_indices()) for d in [*dialogues, *aside]])),
                "groups_with_signal": signal / len(groups),
                "groups_requested": float(batch.requested),
            }
            | asked
            | cut_shares(groups)
            | {
                "seconds_store": stored - began,
                "seconds_reference": scored - scoring,
                "seconds_learning": learning,
                "seconds_weight_sync": syncing,
                "seconds_rollout": rollout,
                "seconds_waiting": waiting,
                "seconds_update": waiting + learning + syncing + measuring,
            },
        )
        self.updates += 1
        self._report()
        self.keep_checkpoint()
        self._elastic.rollouts_begin()
        self._at = time.monotonic()

    def _account_for(self, batch: RolloutBatch, groups: Sequence[Sequence[Dialogue]]) -> dict[str, float]:
        """Note what ``jobs/audit.py`` looks for: every group that was asked for, learned from or dropped for a reason.

        Args:
            groups: what the store has handed out: ``batch.groups``, or, after a restart, what is left of before.

        Returns:
            metrics: groups asked for in place of others, and the shares of tries that each party broke since the last
            update.
        """
        statistics, name = self.parts.collector.statistics, f"{self.name}-{self.seed}"
        for group in batch.discarded:
            statistics.drop_group(group[0].group_id, NO_SIGNAL)
            self.policy_tokens_discarded += sum(
                int(d.policy_tokens.mask.sum()) for d in group if d.policy_tokens is not None
            )
        extra = [f"{name}-{self.updates}-{number}" for number in batch.extra]
        # What a lost attempt at this update asked for on top, and the store kept, was asked for all the same.
        first = {int(m["update"]): int(m["value"]) for m in self.metrics if m["name"] == "groups_requested"}
        first[self.updates] = batch.requested
        for opens, *_ in groups:
            statistics.deliver_group(opens.group_id)
            number = int(opens.group_id.rpartition("-")[2])
            if number >= first.get(opens.update, number + 1):
                extra.append(opens.group_id)
        self._left_over |= {group[0].group_id for group in batch.groups}
        self._left_over -= {group[0].group_id for group in groups}
        self.groups_extra = list(dict.fromkeys([*self.groups_extra, *extra]))
        tries = statistics.tries_of("rollout")
        since, self._tries = tries - self._tries, tries
        total = max(1, since.total())
        failed = {party: since[party] for party in Party if since[party] or party in (Party.USER, Party.ENGINE)}
        return {
            "groups_extra": float(len(batch.extra)), "groups_discarded": float(len(batch.discarded)),
            **{f"failed_share_{party}": count / total for party, count in failed.items()},
        }  # fmt: skip

    def measure_shift(self, user: ReplicaPool | ScriptedHuman | None) -> None:
        """Every ``shift.every`` updates: how far are policy and ``user`` (None: nobody answers) from real dialogues?
        Before an update that is only noted, and done while the learner takes its step."""
        if not self._watch.is_due(self.updates):
            return
        self._measuring_due, self._user = True, user
        if not self.running:
            began = time.monotonic()
            policy = self._watch.draw(self.updates)
            self._watch.estimate(policy, self._watch.hold(self.updates, user))
            self.log({"seconds_measuring": time.monotonic() - began})

    def _step_and_measure(self, samples: Sequence[Sample]) -> dict[str, float]:
        """The learner's step, with the measurement that is due; its metrics, and ``seconds_step``."""
        parts, config = self.parts, self.parts.config.training

        def step() -> dict[str, float]:
            began = time.monotonic()
            metrics = parts.learner.step(
                POLICY, samples, (config.loss, dict(config.loss_config)), minibatches=config.minibatches,
                temperature=parts.config.policy.sampling.temperature,
            )  # fmt: skip
            return metrics | {"seconds_step": time.monotonic() - began}

        if not self._measuring_due:
            return step()
        began = time.monotonic()
        policy = self._watch.draw(self.updates)
        with ThreadPoolExecutor(1) as beside:
            stepping = beside.submit(step)
            held = self._watch.hold(self.updates, self._user)
            metrics = stepping.result()
        self._watch.estimate(policy, held)
        self._measuring_due = False
        return metrics | {"seconds_measuring": time.monotonic() - began - metrics["seconds_step"]}

    def log(self, values: dict[str, float], update: int | None = None) -> None:
        """Keep metrics of an update, by default of the one that is going on."""
        update = self.updates if update is None else update
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, update)
            self.metrics.append(
                {"arm": self.name, "seed": self.seed, "update": update, "name": name, "value": float(value)}
            )

    def _report(self) -> None:
        last = {m["name"]: m["value"] for m in self.metrics if m["update"] == self.updates - 1}
        updates, who = self.parts.config.training.updates, f"{self.name} (seed {self.seed})"
        self.parts.progress.show(who, self.updates, updates)
        entropy = f"entropy {last['entropy']:.2f}" if "entropy" in last else why_nothing_was_learned(last)
        figures = f"reward {last['reward']:+.3f}, success {last['success']:.2f}, {entropy}"
        self.parts.say(f"{who} update {self.updates}/{updates}: {figures}")
        if words := signal_notice([m["value"] for m in self.metrics if m["name"] == "groups_with_signal"]):
            self.parts.say(f"{who}: {words}")

    def close(self) -> None:
        """Fetch what was measured beside training, write out what TensorBoard reads, and end what ran ahead."""
        if self._ahead is not None:
            self._ahead.close()
        for group_id in sorted(self._left_over):
            self.parts.collector.statistics.drop_group(group_id, LEFT_OVER)
        self.shift = self._watch.records()
        for record in self.shift:
            self.log(overall(record), record["update"])
        self._tensorboard.close()
