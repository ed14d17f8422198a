"""The cost model against values worked out by hand, its properties, clusters that do not fit, damaged run folders."""

import json
import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from tests.support.paths import ROOT
from tools.plan.check import check_run, paired_ratio, ratio_of_means
from tools.plan.cluster import Cluster, ClusterConfig, MachinesConfig, Need, needs_of, read_cluster
from tools.plan.measured import UpdateMeasured, occasions_in, read_measured, trained_arms
from tools.plan.model import CostModel, Network, Setting, learning_seconds, rollout_seconds
from tools.plan.picture import draw
from tools.plan.search import Planner, cheapest, counts_of, fastest

HALF_BATCH = {"policy": 16.0, "simulator": 16.0}
SETTING = Setting(replicas={"policy": 1, "simulator": 1}, ranks=1, tokens=1000)
WIRES = Network(weight_bytes=3_000_000_000, bytes_per_second=1e9)


def update(**changes: Any) -> UpdateMeasured:
    made = UpdateMeasured(
        seed=0, update=1, rollout=10.0, learning=4.0, sync=1.0, hidden=0.0, optimizer_steps=2,
        replicas={"policy": 1, "simulator": 1}, in_flight={"policy": 48.0, "simulator": 16.0},
    )  # fmt: skip
    return replace(made, **changes)


def model(*updates: UpdateMeasured, before: Setting = SETTING) -> CostModel:
    return CostModel(updates=updates or [update()], measured_setting=before, half_batch=HALF_BATCH, network=WIRES)


def test_rollouts_by_hand() -> None:
    def seconds(policy: int, simulator: int, tokens: float = 1.0) -> float:
        return rollout_seconds(update(), {"policy": policy, "simulator": simulator}, tokens, HALF_BATCH)

    assert seconds(1, 1) == pytest.approx(10)
    # 3/4 of the waiting is for the policy, whose turns took 1 + 48/16 = 4 times as long as alone: now 1 + 24/16 = 2.5.
    assert seconds(2, 1) == pytest.approx(10 * (0.75 * 2.5 / 4 + 0.25))
    assert seconds(1, 2) == pytest.approx(10 * (0.75 + 0.25 * 1.5 / 2))
    # Twice the tokens: 1 + 96/16 = 7 for 4, and 1 + 32/16 = 3 for 2.
    assert seconds(1, 1, 2.0) == pytest.approx(10 * (0.75 * 7 / 4 + 0.25 * 3 / 2))
    assert rollout_seconds(update(in_flight={"policy": 0, "simulator": 0}), {}, 3.0, HALF_BATCH) == 30


def test_learning_and_sync_by_hand() -> None:
    four_ranks = replace(SETTING, ranks=4, tokens=2000)
    assert learning_seconds(update(), SETTING, four_ranks, WIRES) == pytest.approx(4 * 2 / 4)
    # On two machines each of 2 steps sends 2 · 1/2 · 3 GB at 1 GB/s.
    apart = replace(four_ranks, learner_machines=2, machines=3)
    assert learning_seconds(update(), SETTING, apart, WIRES) == pytest.approx(2 + 6)
    # Measured apart and planned together: the sending goes, which took longer than what was measured.
    assert learning_seconds(update(), apart, SETTING, WIRES) == 0
    assert model().mean(replace(SETTING, machines=2)).sync == pytest.approx(1 + 3)
    assert model(before=replace(SETTING, machines=2)).mean(SETTING).sync == 0


def test_what_overlaps_by_hand() -> None:
    # 4 of the 5 s of learning and sync went on beside the rollouts: four fifths of whichever is shorter.
    ahead = model(update(hidden=4.0))
    assert ahead.mean(SETTING).step == pytest.approx(11)
    eight_ranks = ahead.mean(replace(SETTING, ranks=8))
    assert eight_ranks.hidden == pytest.approx(0.8 * 1.5) and eight_ranks.step == pytest.approx(10 + 0.5 + 1 - 1.2)
    assert model(update(rollout=2.0, hidden=2.0)).mean(SETTING).step == pytest.approx(5)


def test_a_prediction_of_the_same_is_what_was_measured() -> None:
    updates = [update(rollout=10 + i, learning=4 - 0.1 * i) for i in range(6)]
    found = model(*updates).predict(SETTING)
    assert found.parts.step == pytest.approx(12.5 + 3.75 + 1)
    assert found.low < found.parts.step < found.high
    doubled = model(*updates).predict(replace(SETTING, tokens=2000))
    # It is uncertain how full replicas are, as soon as that matters.
    assert doubled.high - doubled.low > found.high - found.low


numbers = st.floats(0.01, 500)
shares = st.floats(0, 1)
counts = st.integers(1, 64)


@given(
    st.tuples(numbers, numbers, numbers, numbers, numbers), st.tuples(counts, counts, counts, counts), numbers, shares
)
def test_more_of_anything_on_the_same_machines_is_never_slower(
    times: tuple[float, ...], number: tuple[int, ...], tokens: float, overlapping: float
) -> None:
    rollout, learning, sync, policy, simulator = times
    measured = update(
        rollout=rollout, learning=learning, sync=sync, hidden=overlapping * min(rollout, learning + sync),
        in_flight={"policy": policy, "simulator": simulator},
        replicas={"policy": number[0], "simulator": number[1]},
    )  # fmt: skip
    found = model(measured)
    here = Setting(
        replicas={"policy": number[2], "simulator": number[3]}, ranks=number[0], tokens=math.ceil(1000 * tokens)
    )
    more = [
        replace(here, replicas=here.replicas | {side: here.replicas[side] + 1}) for side in ("policy", "simulator")
    ] + [replace(here, ranks=here.ranks + 1)]
    step = found.mean(here).step
    assert all(found.mean(each).step <= step * (1 + 1e-12) for each in more)
    # One more at most halves the time, where there was one and it was full.
    assert found.mean(more[0]).rollout >= found.mean(here).rollout * (1 - 1e-12) / 2
    assert found.mean(replace(here, tokens=2 * here.tokens)).step <= 2 * step * (1 + 1e-12)


# ---- machines and money ---------------------------------------------------------------------------------------------

GPU = {role: Need(cpus=2, gpus=1) for role in ("policy", "simulator", "learner")}


def gpus(**changes: Any) -> ClusterConfig:
    """A head, up to five spot machines of one GPU, and one of two GPUs on demand."""
    return ClusterConfig(
        network_gigabytes_per_second=1,
        machines={
            "head": MachinesConfig(cpus=8, dollars_per_hour=0.5, at_least=1),
            "rollout": MachinesConfig(
                runs=["policy", "simulator"], cpus=8, gpus=1, dollars_per_hour=4, spot_dollars_per_hour=1.5, spot=True,
                at_most=5,
            ),
            "learner": MachinesConfig(runs=["learner"], cpus=8, gpus=2, dollars_per_hour=7, **changes),
        },
    )  # fmt: skip


def test_machines_and_dollars_by_hand() -> None:
    cluster = Cluster(gpus(), GPU, "here")
    placed = cluster.place({"policy": 3, "simulator": 2, "learner": 2})
    assert placed is not None and placed.machines == {"head": 1, "rollout": 5, "learner": 1}
    assert placed.dollars_per_hour == pytest.approx(0.5 + 5 * 1.5 + 7)
    assert placed.on_demand_dollars_per_hour == pytest.approx(0.5 + 5 * 4 + 7)
    assert (placed.learner_machines, placed.working_machines) == (1, 6)
    assert cluster.place({"policy": 3, "simulator": 3, "learner": 1}) is None
    assert cluster.place({"policy": 1, "simulator": 1, "learner": 3}) is None
    assert [cluster.most(role) for role in GPU] == [5, 5, 2]


def test_shares_of_one_machine() -> None:
    shared = ClusterConfig(
        machines={"m": MachinesConfig(runs=["policy", "simulator", "learner"], cpus=8, gpus=1, at_most=2)}
    )
    needs = {
        "policy": Need(cpus=0, gpus=0.1), "simulator": Need(cpus=0, gpus=0.1), "learner": Need(cpus=1, gpus=0.7)
    }  # fmt: skip
    cluster = Cluster(shared, needs, "here")
    assert cluster.most("policy") == 20  # ten times 0.1 is 1, whatever binary fractions say
    placed = cluster.place({"policy": 2, "simulator": 1, "learner": 1})
    assert placed is not None and placed.machines == {"m": 1}
    placed = cluster.place({"policy": 2, "simulator": 2, "learner": 2})
    assert placed is not None and placed.machines == {"m": 2} and placed.learner_machines == 2


@given(st.tuples(counts, counts, counts))
def test_dollars_add_up_and_every_part_has_its_room(number: tuple[int, int, int]) -> None:
    cluster = Cluster(gpus(at_most=9), GPU, "here")
    wanted = dict(zip(GPU, number, strict=True))
    placed = cluster.place(wanted)
    assert (placed is None) == (wanted["policy"] + wanted["simulator"] > 5 or wanted["learner"] > 18)
    if placed is not None:
        prices = {"head": 0.5, "rollout": 1.5, "learner": 7.0}
        assert placed.dollars_per_hour == pytest.approx(sum(prices[n] * c for n, c in placed.machines.items()))
        assert placed.on_demand_dollars_per_hour >= placed.dollars_per_hour


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[1]", ":1:1: the file is a list"),
        ("machines: {a: [}", "not readable as YAML"),
        ("machines: {a: {gpu: 1}}", "did you mean"),
        ("machines: {a: {cpus: many}}", "machines.a.cpus"),
        ("machines: {a: {runs: [policy, simulator], cpus: 8}}", "'learner' must stand in `runs` of exactly one"),
        ("machines: {a: {runs: [polcy], cpus: 8}}", "runs.0. is 'polcy': .*did you mean 'policy'"),
        ("machines: {a: {runs: [policy, simulator, learner], cpus: 0.4}}", "has no capacity for one policy"),
        ("machines: {a: {dollars_per_hour: -1}}", "dollars_per_hour is -1"),
        ("machines: {a: {dollars_per_hour: .nan}}", "dollars_per_hour is nan"),
        ("machines: {a: {spot: true}}", "spot_dollars_per_hour is missing"),
        ("machines: {a: {at_least: 3}}", "at_most is 1"),
        ("network_gigabytes_per_second: 0", "network_gigabytes_per_second is 0: it must be above 0"),
    ],
)
def test_clusters_that_are_refused(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        Cluster(read_cluster(file), needs_of(load_config(ROOT / "configs" / "dev.yaml")), str(file))


@pytest.mark.parametrize(("name", "hardware"), [("two_cores", "cpu"), ("gpus", "cluster")])
def test_the_clusters_that_come_along_have_room_for_their_hardware(name: str, hardware: str) -> None:
    overlay = ROOT / "calibrated_rl" / "config" / "hardware" / f"{hardware}.yaml"
    config = load_config(ROOT / "configs" / "dev.yaml", [str(overlay)])
    cluster = Cluster(read_cluster(ROOT / "configs" / "clusters" / f"{name}.yaml"), needs_of(config), name)
    assert cluster.place(counts_of(config)) is not None


# ---- run folders ----------------------------------------------------------------------------------------------------

SETTINGS = """
human: calibrated_rl.examples.front_desk:FrontDeskHuman
training: {updates: 6, tokens_per_update: 1000, checkpoint_every: 2}
shift: {every: 5}
calibration: {every: 3}
learner: {gpus: 0, cpus: 0.5}
"""


def metrics(updates: int = 6, **changes: float) -> list[dict[str, Any]]:
    """Updates of 10 + 4 + 1 s, of which the first takes twice as long."""
    usual = {
        "seconds_rollout": 10.0, "seconds_learning": 4.0, "seconds_weight_sync": 1.0, "optimizer_steps": 2.0,
        "replicas_policy": 1.0, "replicas_simulator": 1.0, "seconds_in_turns_policy": 480.0,
        "seconds_in_turns_simulator": 160.0, "reward": math.nan,
    } | changes  # fmt: skip
    return [
        {"update": u, "name": name, "value": value * (2 if u == 0 and name.startswith("seconds") else 1)}
        for u in range(updates)
        for name, value in usual.items()
    ]


def write(run: Path, rows: list[dict[str, Any]], arm: str = "interactive", settings: str = SETTINGS) -> Path:
    (run / "arms").mkdir(parents=True, exist_ok=True)
    (run / "arms" / f"{arm}-0.json").write_text(json.dumps({"metrics": rows}))
    (run / "config.yaml").write_text(settings)
    weights = run / "policies" / f"{arm}-0"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "model.safetensors").write_bytes(bytes(1000))
    return run


def test_a_run_is_read(tmp_path: Path) -> None:
    rows = metrics()
    rows += [{"update": u, "name": "seconds_measuring", "value": v} for u, v in ((0, 2.0), (5, 4.0))]
    rows += [{"update": u, "name": "seconds_checkpoint", "value": 0.5} for u in (1, 3)]
    rows.append({"update": 3, "name": "seconds_waiting_for_shift", "value": 1.0})
    write(tmp_path, rows, "calibrated")
    slow = next(row for row in rows if row["update"] == 3 and row["name"] == "seconds_rollout")
    slow["value"] = 40.0  # the simulator was aligned again
    write(tmp_path, rows, "calibrated")
    write(tmp_path, [], "start")
    assert trained_arms(tmp_path) == ["calibrated"]
    found = read_measured(tmp_path, "calibrated")
    assert [each.update for each in found.updates] == [1, 2, 4, 5] and found.weight_bytes == 1000
    assert found.updates[0].in_flight == {"policy": 48.0, "simulator": 16.0}
    assert found.occasions == {"measuring": 3.0, "checkpoint": 1.0, "aligning": 30.0}
    assert occasions_in(found.config, "calibrated") == {"measuring": 2, "checkpoint": 2, "aligning": 1}
    assert occasions_in(found.config, "interactive")["aligning"] == 0
    assert found.seconds_an_update() == pytest.approx(
        {"rollout": 10, "learning": 4, "sync": 1, "measuring": 1, "checkpoint": 1 / 3, "aligning": 5}
    )
    draw([found], tmp_path / "made" / "step.png")
    assert (tmp_path / "made" / "step.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_first_updates(tmp_path: Path) -> None:
    rows = metrics()
    for row in rows:
        if row["name"] == "seconds_rollout" and row["update"] >= 4:
            row["value"] = 1.0
    write(tmp_path, rows)
    assert read_measured(tmp_path, "interactive", 4).seconds_an_update()["rollout"] == 10
    assert read_measured(tmp_path, "interactive").seconds_an_update()["rollout"] == pytest.approx(32 / 5)


def broken(rows: list[dict[str, Any]], name: str, value: Any) -> list[dict[str, Any]]:
    return [row | {"value": value} if (row["update"], row["name"]) == (2, name) else row for row in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"metrics": [', "not readable JSON"),
        ("[]", "does not contain a JSON object"),
        ("{}", "contains no list of metrics"),
        ('{"metrics": [{"update": 1}]}', "no update, name or value"),
        ('{"metrics": [{"update": "1", "name": "reward", "value": 1}]}', "is not a number"),
        (json.dumps({"metrics": broken(metrics(), "seconds_rollout", None)}), "'seconds_rollout' of update '2'"),
        (json.dumps({"metrics": broken(metrics(), "seconds_rollout", -1)}), "'seconds_rollout' of update 2 is -1"),
        (json.dumps({"metrics": broken(metrics(), "seconds_learning", math.inf)}), "'seconds_learning' of update 2"),
        (json.dumps({"metrics": broken(metrics(), "seconds_rollout", 0)}), "took no time"),
        (json.dumps({"metrics": broken(metrics(), "replicas_policy", 0)}), "had no replica"),
        (json.dumps({"metrics": [m for m in metrics() if m["name"] != "seconds_learning"]}), "has no metric"),
        (json.dumps({"metrics": metrics(3)}), "2 updates of 'interactive' can be used, at least 3"),
    ],
)
def test_damaged_files_are_named(content: str, expected: str, tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "arms" / "interactive-0.json").write_text(content)
    with pytest.raises(UserError, match=expected):
        read_measured(tmp_path, "interactive")


def planner(run: Path, **learner: Any) -> Planner:
    measured = read_measured(run, "interactive")
    return Planner(measured, measured.config, Cluster(gpus(**learner), needs_of(measured.config), "here"))


def test_plans_by_hand(tmp_path: Path) -> None:
    device = "policy: {engine: {num_gpus: 1}}\nsimulator: {engine: {num_gpus: 1}}\n"
    found = planner(write(tmp_path, metrics(), settings=SETTINGS.replace("gpus: 0", "gpus: 1") + device))
    plans = list(found.plans())
    # 1 to 4 of a side where the other has at least one, and both at most five: 10, times one or two ranks.
    assert len(plans) == 20
    own = found.plan(counts_of(found.config))
    assert own is not None and own.seconds == pytest.approx(6 * 15)
    assert own.dollars == pytest.approx(90 / 3600 * (0.5 + 2 * 1.5 + 7)) and own.on_demand_dollars > own.dollars
    best = fastest(plans)
    # Both ranks share a machine, so that the second costs nothing; the policy gains more than the simulator.
    assert best.counts == {"policy": 3, "simulator": 2, "learner": 2}
    rollout = 10 * (0.75 * (1 + 48 / 16 / 3) / 4 + 0.25 * (1 + 16 / 16 / 2) / 2)
    assert best.seconds == pytest.approx(6 * (rollout + 4 / 2 + 1))
    assert cheapest(plans).dollars == min(plan.dollars for plan in plans) and cheapest(plans).counts["learner"] == 2
    assert found.unmeasured == ["measuring", "checkpoint"]
    other = load_config(tmp_path / "config.yaml", ["policy.engine.num_gpus=0"])
    with pytest.raises(UserError, match=r"other settings \(policy.engine.num_gpus\)"):
        Planner(read_measured(tmp_path, "interactive"), other, found.cluster)
    other = load_config(tmp_path / "config.yaml", ["training.group_size=3", "training.updates=9"])
    assert Planner(read_measured(tmp_path, "interactive"), other, found.cluster).beside == ["training.group_size"]


def test_a_run_with_other_settings_is_checked(tmp_path: Path) -> None:
    found = planner_here(write(tmp_path / "before", metrics()))
    # Twice the tokens take 10 · (0.75 · 7/4 + 0.25 · 3/2) + 2 · 4 + 1 = 25.875 s; they took 16 + 8 + 1.
    doubled = SETTINGS.replace("1000", "2000")
    rows = metrics(seconds_rollout=16.0, seconds_learning=8.0)
    checked = check_run(found, write(tmp_path / "after", rows, settings=doubled))
    assert checked.predicted.step == pytest.approx(25.875) and checked.happened.step == pytest.approx(25)
    assert checked.ratio.value == pytest.approx(25 / 25.875) and checked.updates == 5
    assert checked.low < 25 < checked.high and checked.beside == []
    # With two policy replicas in some updates, each is held against its own prediction.
    rows = metrics()
    for row in rows:
        if row["name"] == "replicas_policy" and row["update"] >= 4:
            row["value"] = 2.0
    checked = check_run(found, write(tmp_path / "elastic", rows))
    assert checked.predicted.rollout == pytest.approx(10 * (3 / 5 + 2 / 5 * (0.75 * 2.5 / 4 + 0.25)))


def planner_here(run: Path) -> Planner:
    measured = read_measured(run, "interactive")
    needs = needs_of(measured.config)
    return Planner(measured, measured.config, Cluster.of_one_machine(needs, counts_of(measured.config)))


def test_the_ratio_of_means_by_hand() -> None:
    # Means 2 and 4, squared standard errors 1/3 and 4/3: relative 1/12 + 1/12. t with 2 degrees of freedom: 4.303.
    found = ratio_of_means([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    wide = 4.302653 * math.sqrt(1 / 6)
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 * math.exp(-wide), 0.5 * math.exp(wide)))


def test_updates_are_compared_by_number() -> None:
    before = {(0, 1): 4.0, (0, 2): 2.0, (0, 3): 1.0, (1, 1): 9.0}
    common, found = paired_ratio({(0, 1): 8.0, (0, 2): 4.0, (0, 3): 2.0, (2, 1): 5.0}, before)
    assert common == 3 and found is not None
    # Each took twice as long: nothing is left to chance, though the means of four differ otherwise.
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert paired_ratio({(0, 1): 8.0}, before) == (1, None)


def test_runs_of_an_older_version_are_refused(tmp_path: Path) -> None:
    rows = [row for row in metrics() if not row["name"].startswith("seconds_in_turns")]
    with pytest.raises(UserError, match="no metrics 'seconds_in_turns_policy'"):
        planner_here(write(tmp_path, rows))


# ---- the job --------------------------------------------------------------------------------------------------------

Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Job:
    """Runs jobs/plan.py; its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.syspath_prepend(str(ROOT / "jobs"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments), "--hardware", "cpu"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / "plan.py"), run_name="__main__")
        output = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, output.out, output.err

    return run


def test_the_job_plans_checks_and_writes(job: Job, tmp_path: Path) -> None:
    write(tmp_path / "before", metrics())
    write(tmp_path / "after", metrics(seconds_rollout=9.0))
    code, out, _ = job(
        tmp_path / "before" / "config.yaml", "--arm", "interactive", "--run", "before", "--check", "after", "--cluster",
        ROOT / "configs" / "clusters" / "two_cores.yaml", "--out", "plan.json", "--picture", "step.png",
    )  # fmt: skip
    assert code == 0 and (tmp_path / "step.png").is_file()
    assert "update 15.00 s" in out and "ratio 0.93" in out and "not counted" in out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["predicted"]["step"] == pytest.approx(15) and found["check"]["happened"]["rollout"] == 9
    assert found["plans"]["cheapest"]["dollars"] == pytest.approx(6 * 15 / 3600 * 0.1)


def test_the_job_refuses(job: Job, tmp_path: Path) -> None:
    config = write(tmp_path / "before", metrics()) / "config.yaml"

    def refused(*arguments: object) -> str:
        code, _, err = job(config, *arguments)
        assert code == 2 and err.count("\n") == 1
        return err

    arm = ("--arm", "interactive")
    assert "there is no arm 'start' that runs rollouts" in refused("--arm", "start")
    assert "there is no run folder nowhere" in refused(*arm, "--run", "nowhere")
    assert "no finished arm 'oracle'; there are: interactive" in refused("--arm", "oracle", "--run", "before")
    assert "there is no run folder nowhere" in refused(*arm, "--run", "before", "--check", "nowhere")
    assert "there is no cluster file nowhere.yaml" in refused(*arm, "--run", "before", "--cluster", "nowhere.yaml")
    assert "--updates 3: at least 4" in refused(*arm, "--updates", 3)
    assert "did you mean 'training.updates'" in refused(*arm, "training.update=3")
    code, _, err = job(config, *arm, "--first", "0")
    assert code == 2 and "argument --first: it is 0: it must be at least 1" in err
