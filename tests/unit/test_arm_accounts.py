"""An arm in training without engines, learner or Ray: what is dropped, replaced, learned from and charged adds up, also
where it resumes from a checkpoint. The learner and the replicas are made up; the arm, the collector, the replay store,
the checkpoints and the audit are the real ones."""

import asyncio
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrated_rl.arms.interactive import Interactive
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import ShiftConfig, TrainingConfig
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.errors import UserError
from calibrated_rl.health.config import HealthConfig
from calibrated_rl.health.counting import SimulatorHealth
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.learner.config import AdamWConfig, OptimizerConfig
from calibrated_rl.replay.schema import from_table
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.rollout.statistics import RolloutStatistics
from calibrated_rl.run.audit import audit_run
from calibrated_rl.training.arm_run import ArmRun
from calibrated_rl.weight_sync.object_store import FullUpdate
from tests.support.made_up_pools import Chat, MadeUpPool, Say, by_seed, collector_of, control_token, tokens


class Paying(Chat):
    """Pays for the policy's first word; on scenarios whose number ``equal`` divides, nothing at all."""

    max_policy_turns = 1

    def __init__(self, equal: int) -> None:
        self.equal = equal

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        if self.equal and int(scenario.id) % self.equal == 0:
            return Outcome(reward=0.5, success=False)
        said = next(turn.text for turn in turns[1:] if turn.side is Side.POLICY)
        return Outcome(reward=float(zlib.crc32(said.encode())), success=True)


def log_of(scenario: Scenario) -> Dialogue:
    texts = ("hello", "table", "which day ?", "friday")
    sides = (Side.POLICY, Side.USER)
    turns = tuple(Turn(side=sides[i % 2], text=text, source=Source.LOG) for i, text in enumerate(texts))
    return Dialogue(id=scenario.id, task="chat", scenario=scenario, turns=turns, ending="x", outcome=None, kind="log")


class Learner:
    """Steps, and keeps nothing."""

    def load(self, *arguments: Any, **named: Any) -> None: ...

    def restore(self, folder: Path) -> None:
        assert (folder / "weights").read_text() == "w"

    def weight_update(self, slot: str, version: int) -> FullUpdate:
        return FullUpdate(version=version, weights=None)  # type: ignore[arg-type]

    def snapshot(self, slots: Sequence[str]) -> None: ...

    def write_snapshot(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("w")

    def step(self, slot: str, samples: Sequence[Any], *arguments: Any, **named: Any) -> dict[str, float]:
        return {"loss": 0.0, "entropy": 1.0, "kl_update_k3": 0.0, "grad_norm": 1.0}


class Elastic:
    def rollouts_begin(self) -> None: ...

    def rollouts_end(self) -> None: ...

    def after_update(self, *seconds: float) -> dict[str, float]:
        return {}


class Killed(Exception):
    """The run is ended from outside."""


class Store:
    """What a run asks of its store, without an actor."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def open(self, name: str, rewind_to: int | None = None) -> None:
        self.store = ReplayStore(self.run / "replay" / name)
        if rewind_to is not None:
            self.store.rewind(rewind_to)

    def append(self, dialogues: Sequence[Dialogue]) -> None:
        self.store.append(dialogues)

    def sample(self, groups: int, **named: Any) -> list[list[Dialogue]]:
        return self.store.sample(groups, allow_fewer=True, **named)

    def undelivered(self, arm: str) -> list[str]:
        return self.store.undelivered(arm)


class MadeUpRun:
    """What an arm needs of ``TrainingRun``."""

    def __init__(
        self, folder: Path, training: TrainingConfig, say: Say, equal: int, health: HealthConfig | None = None
    ) -> None:
        self.folder, task = folder, Paying(equal)
        self.policy, simulator = MadeUpPool("policy"), MadeUpPool("simulator", say)
        self.closing: list[Any] = []
        self.learner = Learner()
        self.inputs: Any = SimpleNamespace(
            config=RunConfig(training=training, shift=ShiftConfig(every=0), health=health or HealthConfig()),
            folder=folder, task=task, human=None,
            logs={split: [log_of(s) for s in task.scenarios(split, 60)] for split in Split},
            progress=SimpleNamespace(show=lambda *a: None), endpoints=Endpoints({}, folder),
        )  # fmt: skip
        logs, names = self.inputs.logs, self.inputs.config.health.detectors
        self.health = SimulatorHealth(task, names, logs[Split.CALIBRATION], logs[Split.MONITOR])
        self.models: Any = SimpleNamespace(policy=SimpleNamespace(chat=tokens()))
        self.cluster: Any = SimpleNamespace(
            collector=collector_of(self.policy, task), policy=self.policy, simulator=simulator,
            simulator_user=simulator, learner=self.learner, store=Store(folder),
            background=SimpleNamespace(fetch=lambda references, timeout_s: []),
            on_close=self.closing.append,
        )  # fmt: skip
        self.start: Any = SimpleNamespace(folder=Path("models"), log_probs_by_log={})
        self.fits: Any = None
        self.simulator: Any = SimpleNamespace(
            load=lambda folder, version=None: None, uncalibrated=Path("models"), path_in_run="",
            user=simulator, version=0,
        )  # fmt: skip
        self.writer: Any = SimpleNamespace(wait=lambda: None, write=lambda *jobs: [job() for _, job in jobs])
        for pool in (self.policy, simulator):
            pool.publish = lambda update, pool=pool: setattr(pool, "version", update.version)  # type: ignore[method-assign]

    def begin(self, arm: str, seed: int, *, single_turns: bool = False) -> ArmRun:
        return ArmRun(self, arm, seed, single_turns=single_turns)  # type: ignore[arg-type]

    def check_parity(self) -> dict[str, float]:
        return {"parity_mean_policy": 1e-7}

    def elastic(self) -> Elastic:
        return Elastic()


def train(run: MadeUpRun) -> ArmRun:
    """The whole arm."""
    run.cluster.collector.statistics = RolloutStatistics()
    try:
        arm = Interactive().train(run, 0)  # type: ignore[arg-type]
    finally:
        for close in run.closing:
            close()
    arm.close()
    return arm


def train_until(run: MadeUpRun, update: int) -> None:
    """The arm as far as ``update``, in whose step it is killed."""
    steps, step = 0, run.learner.step

    def killed(*arguments: Any, **named: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps > update:
            raise Killed
        return step(*arguments, **named)

    run.learner.step = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(run)


def audited(run: MadeUpRun, arm: ArmRun) -> Any:
    found = run.cluster.collector.statistics.counts()
    result = {"metrics": arm.metrics, "groups_extra": arm.rollouts.groups_extra, **found}
    (run.folder / "arms").mkdir()
    (run.folder / "arms" / "interactive-0.json").write_text(json.dumps(result))
    (account,) = audit_run(run.folder)
    assert account.problems == ()
    return account


def metrics_of(arm: ArmRun, name: str) -> list[float]:
    return [metric["value"] for metric in arm.metrics if metric["name"] == name]


def breaking(share: float) -> Say:
    def say(request: GenerateRequest) -> str | list[int]:
        broken = np.random.default_rng(request.seed + 1).random() < share
        return [control_token()] if broken else by_seed(request)

    return say


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize(("share", "equal", "extra"), [(0.0, 0, 0), (0.4, 0, 0), (0.0, 2, 2), (0.3, 2, 3)])
def test_what_is_asked_for_is_learned_from_or_dropped_for_a_reason(
    tmp_path: Path, staleness: int, share: float, equal: int, extra: int
) -> None:
    training = TrainingConfig(updates=8, tokens_per_update=60, group_size=3, max_staleness=staleness,
                              extra_groups=extra, checkpoint_every=3)  # fmt: skip
    run = MadeUpRun(tmp_path, training, breaking(share), equal)
    arm = train(run)
    account = audited(run, arm)
    learned = metrics_of(arm, "groups_requested")
    assert len(learned) == 8 and account.delivered == sum(learned), "every update had as many as it asked for at first"
    assert account.requested == account.delivered + sum(account.dropped.values())
    assert len(arm.rollouts.groups_extra) == sum(metrics_of(arm, "groups_extra")) == sum(account.dropped.values())
    assert all(discarded <= extra for discarded in metrics_of(arm, "groups_discarded"))
    if not share:
        assert not run.cluster.collector.statistics.dropped and not sum(metrics_of(arm, "failed_share_user"))
    else:
        assert sum(metrics_of(arm, "failed_share_user")) > 0.5
        assert run.cluster.collector.statistics.dropped["user_degenerate"] > 3
    if equal:  # what was put aside was earned, too: else the figures would be those of a selection
        aside = zip(metrics_of(arm, "groups_discarded"), metrics_of(arm, "success"), strict=True)
        assert all(success < 1 for discarded, success in aside if discarded)
    if extra:
        tokens_said = [d.policy_tokens.mask.sum() for d in dialogues_of(run)]
        assert arm.policy_tokens == sum(tokens_said) and arm.rollouts.policy_tokens_discarded > 0
        assert account.dropped["without signal (its rewards were all equal)"] == sum(
            metrics_of(arm, "groups_discarded")
        )
        assert np.mean(metrics_of(arm, "groups_with_signal")) > 0.6
    elif not equal:
        assert metrics_of(arm, "groups_with_signal") == [1.0] * 8 and arm.rollouts.policy_tokens_discarded == 0


def dialogues_of(run: MadeUpRun) -> list[Any]:
    from calibrated_rl.replay.schema import from_table

    return from_table(run.cluster.store.store.table(kind="rollout"))


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_an_arm_that_resumes_has_all_its_groups(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, staleness: int
) -> None:
    """It is killed two updates after its checkpoint; what breaks before and after the kill is not the same."""
    caplog.set_level(logging.INFO, "calibrated_rl")
    training = TrainingConfig(updates=7, tokens_per_update=60, group_size=3, max_staleness=staleness, extra_groups=2,
                              checkpoint_every=3)  # fmt: skip
    train_until(MadeUpRun(tmp_path, training, breaking(0.3), 2), 5)
    shuffled = breaking(0.3)
    other = MadeUpRun(tmp_path, training, lambda r: shuffled(GenerateRequest(r.prompt_ids, 32, 1.0, r.seed + 7, ())), 3)
    arm = train(other)
    assert any("resumes after update 3" in line for line in caplog.messages)
    account = audited(other, arm)
    assert len(metrics_of(arm, "groups_requested")) == 7
    assert metrics_of(arm, "parity_mean_policy") == [1e-7], "once, though the check is made at every start"
    assert account.requested == account.delivered + sum(account.dropped.values())
    assert other.cluster.collector.statistics.tries["rollout/user"] > 3


class SlowPool(MadeUpPool):
    """Every turn takes a while of its own, which is another one with another ``seed``: groups end in another order."""

    seed = 0

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        random = np.random.default_rng([self.seed, request.seed])
        await asyncio.sleep(float(random.exponential(0.002)))
        return self.answer(request)


@pytest.mark.parametrize("kills", [(5,), (5, 2), (3, 2, 1)])
def test_groups_of_a_lost_attempt_are_learned_from_or_left_over_and_not_both(
    tmp_path: Path, kills: tuple[int, ...]
) -> None:
    """What a lost attempt at an update has left in the store is learned from in the place of groups that run again and
    end in another order; those may come in a later update, or never."""
    training = TrainingConfig(updates=9, tokens_per_update=90, group_size=3, max_staleness=2, checkpoint_every=2)

    def slow(attempt: int) -> MadeUpRun:
        run = MadeUpRun(tmp_path, training, by_seed, 0)
        run.policy = SlowPool("policy")
        run.policy.seed = attempt
        run.cluster.policy, run.cluster.collector = run.policy, collector_of(run.policy, run.inputs.task)
        run.policy.publish = lambda update: setattr(run.policy, "version", update.version)  # type: ignore[method-assign]
        return run

    for attempt, steps in enumerate(kills):  # from the checkpoint on
        train_until(slow(attempt), steps)
    last = slow(len(kills))
    account = audited(last, train(last))
    assert account.requested == account.delivered + sum(account.dropped.values())


def test_an_arm_that_learns_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = TrainingConfig(updates=5, tokens_per_update=60, group_size=3, extra_groups=2)
    run = MadeUpRun(tmp_path, training, by_seed, 1)
    arm = train(run)
    assert metrics_of(arm, "groups_with_signal") == [0.0] * 5 and metrics_of(arm, "groups_discarded") == [2.0] * 5
    said = [line for line in caplog.messages if "nothing to learn from" in line]
    assert ["this update" in said[0], "2 updates in a row" in said[1], "4 updates in a row" in said[2]] == [True] * 3
    assert len(said) == 3 and all(line.startswith("interactive (seed 0): ") for line in said)
    audited(run, arm)


@pytest.mark.parametrize("staleness", [0, 2])
def test_an_arm_whose_user_breaks_nearly_everything_ends_in_words(tmp_path: Path, staleness: int) -> None:
    training = TrainingConfig(updates=5, tokens_per_update=60, group_size=3, max_staleness=staleness)
    with pytest.raises(UserError, match=r"the user model broke \d+ of \d+ tries .*user_degenerate"):
        train(MadeUpRun(tmp_path, training, breaking(0.9), 0))


def test_a_run_without_failures_asks_for_nothing_else(tmp_path: Path) -> None:
    """Its seeds are those of group and member, and its scenarios the first of the update."""
    training = TrainingConfig(updates=2, tokens_per_update=60, group_size=3)
    run = MadeUpRun(tmp_path, training, by_seed, 0)
    arm = train(run)
    random = np.random.default_rng([0, 0])
    first = [run.inputs.logs[Split.CALIBRATION][i].scenario.id for i in random.permutation(60)]
    wanted = int(metrics_of(arm, "groups_requested")[0])
    scenarios: Mapping[str, str] = {d.group_id: d.scenario.id for d in dialogues_of(run) if d.update == 0}
    assert list(scenarios.values()) == first[:wanted]
    assert list(scenarios) == [f"interactive-0-0-{number}" for number in range(wanted)]


@pytest.mark.parametrize("staleness", [0, 1])
def test_logs_that_are_too_few_for_the_tokens_of_an_update_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, staleness: int
) -> None:
    training = TrainingConfig(updates=3, tokens_per_update=20_000, group_size=3, max_staleness=staleness)
    run = MadeUpRun(tmp_path, training, by_seed, 0)
    assert set(metrics_of(train(run), "groups_requested")) == {60.0}
    (told,) = [line for line in caplog.messages if "training.tokens_per_update takes" in line]
    assert "scenarios or histories for 60" in told


def test_an_arm_trains_with_the_optimizer_of_its_settings(tmp_path: Path) -> None:
    own = AdamWConfig(beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1, max_grad_norm=0.5)
    changed = {"warmup_steps": 7, "optimizer": own, "learning_rates": {"interactive": 0.25}}
    for changes, expected in (
        (changed, own.at(0.25, 7)), ({"learning_rate": 1e-3}, OptimizerConfig(learning_rate=1e-3, warmup_steps=2)),
    ):  # fmt: skip
        training = TrainingConfig(updates=1, tokens_per_update=60, group_size=3, **changes)  # type: ignore[arg-type]
        run, loaded = MadeUpRun(tmp_path / str(len(changes)), training, by_seed, 0), []
        run.learner.load = lambda slot, *_, optimizer=None, to=loaded, **named: to.append((slot, optimizer))  # type: ignore[method-assign]
        train(run)
        assert loaded == [("policy", expected)]


def test_an_arm_learns_from_rewards_of_turns(tmp_path: Path) -> None:
    """The terminal reward is always the same: all that differs within a group is what its turns earned."""

    class PayingByTurn(Paying):
        def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
            earned = super().outcome(scenario, turns, ending).reward
            return Outcome(reward=0.5, success=True, turn_rewards=(earned,))

    training = TrainingConfig(updates=1, tokens_per_update=60, group_size=3, advantage="dr_grpo")
    run, learned = MadeUpRun(tmp_path, training, by_seed, 0), []
    run.cluster.collector = collector_of(run.policy, PayingByTurn(0))
    step = run.learner.step
    run.learner.step = lambda slot, samples, *rest, **named: learned.extend(samples) or step(slot, samples)  # type: ignore[method-assign, func-returns-value]
    arm = train(run)
    stored = run.cluster.store.store.table(kind="rollout", arm="interactive", update=0)
    dialogues = {d.id: d for d in from_table(stored)}
    assert metrics_of(arm, "groups_with_signal") == [1.0] and len(learned) == len(dialogues) > 0
    paid = [dialogues[sample.name].outcome.episode_return for sample in learned]  # type: ignore[union-attr]
    assert metrics_of(arm, "reward") == [pytest.approx(np.mean(paid))]
    by_group: dict[str, list[float]] = {}
    for sample, value in zip(learned, paid, strict=True):
        by_group.setdefault(sample.group, []).append(value)
    expected = [value - np.mean(by_group[sample.group]) for sample, value in zip(learned, paid, strict=True)]
    assert [sample.advantage for sample in learned] == pytest.approx(expected, rel=1e-5)
