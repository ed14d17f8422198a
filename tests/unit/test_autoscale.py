"""The autoscaler demo without Ray: node types of the launch file, what is made of a timeline."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from calibrated_rl.errors import UserError
from tests.support.paths import ROOT
from tests.unit.test_plan import SETTINGS, metrics, write
from tools.autoscale.cost import cost, node_seconds, prices_of
from tools.autoscale.job import Timeline, figures, refuse_without_nodes, summary
from tools.autoscale.machines import HEAD, autoscaling_config, spot_types
from tools.autoscale.picture import draw

AWS = ROOT / "cluster" / "aws.yaml"


def test_node_types_are_those_of_the_launch_file(tmp_path: Path) -> None:
    launch = yaml.safe_load(AWS.read_text())
    config = autoscaling_config(AWS, tmp_path, "127.0.0.1:1", cpus=2, minute_s=3)
    types = config["available_node_types"]
    assert set(types) == {HEAD} | set(launch["available_node_types"]) - {launch["head_node_type"]}
    for name, kind in types.items():
        if name != HEAD:
            asked = launch["available_node_types"][name]
            assert kind["labels"] == asked["labels"] and kind["resources"] == {"CPU": 2}
            assert (kind["min_workers"], kind["max_workers"]) == (asked["min_workers"], asked["max_workers"])
    assert config["idle_timeout_minutes"] == launch["idle_timeout_minutes"] * 3 / 60
    assert config["max_workers"] == launch["max_workers"]
    assert spot_types(AWS) == ["rollout"]


def test_a_launch_file_without_workers_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("head_node_type: head\navailable_node_types: {head: {}}\n")
    with pytest.raises(UserError, match="no available_node_types"):
        autoscaling_config(file, tmp_path, "127.0.0.1:1", cpus=1, minute_s=1)
    assert spot_types(file) == []


def timeline() -> Timeline:
    made = Timeline()
    for seconds, what, details in (
        (1.0, "job submitted", {}), (4.0, "demand", {}), (6.0, "node started", {"kind": "rollout", "node": "a"}),
        (9.0, "update", {"number": 1}), (10.0, "update", {"number": 2}), (11.0, "spot node killed", {"node": "a"}),
        (11.5, "node refused", {"kind": "rollout"}), (20.0, "capacity again", {"kind": "rollout"}),
        (23.0, "node started", {"kind": "rollout", "node": "b"}), (30.0, "update", {"number": 3}),
        (31.0, "job ended", {"code": 0}), (40.0, "all nodes gone", {}),
    ):  # fmt: skip
        made.note(what, made.began + seconds, **details)
    made.samples = [
        {"seconds": 5.0, "nodes": {}, "replicas": 0}, {"seconds": 7.0, "nodes": {"rollout": 1}, "replicas": 1},
        {"seconds": 9.0, "nodes": {"rollout": 2, "learner": 1}, "replicas": 2},
        {"seconds": 10.0, "nodes": {}, "replicas": 0},
    ]  # fmt: skip
    return made


def test_figures_of_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrated_rl.run import audit

    accounts = [audit.Account(name="interactive-0", requested=5, delivered=4, dropped={"stale": 1})]
    monkeypatch.setattr(audit, "audit_run", lambda run: accounts)
    found: dict[str, Any] = figures(timeline(), tmp_path, "rollout", 0, emptied=True)
    assert found["clean"]
    assert found["seconds"] == {
        "submit_to_demand": 3.0, "demand_to_first_node": 2.0, "demand_to_first_update": 5.0, "longest_update": 20.0,
        "median_update": 10.5, "capacity_again_to_node": 3.0, "job_end_to_no_nodes": 9.0,
    }  # fmt: skip
    assert found["nodes"] == {"started": 2, "refused": 1, "lost": 0, "ended": 0}
    assert found["node_seconds"] == {"learner": 1.0, "rollout": 4.0}
    assert found["groups"] == {"requested": 5, "delivered": 4}
    assert "at most 2 replicas" in summary(found)
    draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    accounts[0] = audit.Account(name="interactive-0", requested=5, delivered=4, problems=("g: handed out 2 times",))
    assert not figures(timeline(), tmp_path, "rollout", 0, emptied=True)["clean"]
    accounts[0] = audit.Account(name="interactive-0", requested=5, delivered=5)
    assert not figures(timeline(), tmp_path, "rollout", 0, emptied=False)["clean"]
    assert not figures(timeline(), tmp_path, "rollout", 1, emptied=True)["clean"]


def test_what_nodes_cost_is_set_beside_the_plan(tmp_path: Path) -> None:
    samples = [{"seconds": float(i), "nodes": {"rollout": 2, "learner": 1} if i < 4 else {}} for i in range(8)]
    assert node_seconds(samples) == {"learner": 4.0, "rollout": 8.0}
    assert node_seconds(samples, 1.5, 3.0) == {"learner": 1.5, "rollout": 3.0}
    prices = prices_of(ROOT / "configs/clusters/gpus.yaml", 1.0)
    assert prices.machines["rollout"].cpus == 1.0 and prices.machines["rollout"].gpus == 0.0
    assert prices.machines["head"].cpus == 8


def test_the_cost_of_a_run_by_hand(tmp_path: Path) -> None:
    """Six updates of 15 s on a head ($0.40), two spot nodes ($2.00) and a learner ($4.00) are planned."""
    engines = "".join(f"{side}: {{engine: {{num_cpus: 1}}}}\n" for side in ("policy", "simulator"))
    run = write(tmp_path, metrics(), settings=SETTINGS + engines)
    prices = prices_of(ROOT / "configs/clusters/gpus.yaml", 1.0)
    found = cost(run, "interactive", prices, 5, 100.0, {"rollout": 250.0, "learner": 100.0})
    assert found["predicted"] == {
        "seconds": 90.0, "dollars": round(90 / 3600 * 8.4, 4), "machines": {"head": 1, "rollout": 2, "learner": 1},
    }  # fmt: skip
    assert found["happened"]["dollars"] == round((250 * 2 + 100 * 4 + 100 * 0.4) / 3600, 4)


def test_a_provider_that_starts_no_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Timeline()
    cluster = SimpleNamespace(events=lambda: [{"event": "refused"}] * 3)
    refuse_without_nodes(cluster, made)  # nothing is needed yet
    made.note("demand")
    refuse_without_nodes(cluster, made)
    made.began -= 100
    made.events[0]["seconds"] = 5.0
    with pytest.raises(UserError, match=r"started no node within 90 s of the demand; it was refused 3 times"):
        refuse_without_nodes(cluster, made)
    cluster.events = lambda: [{"event": "started"}]
    refuse_without_nodes(cluster, made)
