"""An arm that trains with a user behind an endpoint: a budget ends it between two updates, and it resumes there.
The learner and the policy's replicas are made up; the endpoint is a server on a real socket."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrated_rl.config.sections import TrainingConfig
from calibrated_rl.data.dialogue import Side
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.endpoints.errors import BudgetSpent
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.training.arm_run import ArmRun
from tests.support.fault_server import FaultServer
from tests.support.made_up_pools import by_seed
from tests.unit.test_arm_accounts import MadeUpRun, audited, dialogues_of, metrics_of, train

TRAINING = TrainingConfig(updates=3, tokens_per_update=70, group_size=3, checkpoint_every=100)
PRICES = {"price_out": 1000.0}


def run_at(server: FaultServer, folder: Path, training: TrainingConfig, budget: float) -> MadeUpRun:
    config = EndpointConfig(base_url=server.url, model="m", timeout=20.0, budget=budget, **PRICES)
    run = MadeUpRun(folder, training, by_seed, 0)
    run.inputs.endpoints = Endpoints({"api": config}, folder)
    run.inputs.endpoints.charge_to("interactive-0")
    run.simulator.user = EndpointUser(run.inputs.endpoints.client("api"), temperature=1.0, max_tokens=16)
    return run


def trained(run: MadeUpRun) -> ArmRun:
    try:
        return train(run)
    finally:
        run.inputs.endpoints.close()


def said(run: MadeUpRun) -> dict[str, list[str]]:
    return {d.id: [turn.text for turn in d.turns if turn.side is Side.USER] for d in dialogues_of(run)}


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_budget_ends_an_arm_between_two_updates_and_a_larger_one_goes_on(staleness: int, tmp_path: Path) -> None:
    training = replace(TRAINING, max_staleness=staleness)
    with FaultServer() as server:
        whole = run_at(server, tmp_path / "whole", training, 0.0)
        metrics = trained(whole)
        cost = whole.inputs.endpoints.paid("interactive-0")["api"]["cost"]
        assert sum(metrics_of(metrics, "endpoint/api/cost")) == pytest.approx(cost)
        assert min(metrics_of(metrics, "endpoint/api/answers")) > 0 or staleness

    checkpoints = tmp_path / "cut" / "checkpoints" / "interactive-0"
    with FaultServer() as server:
        cut = tmp_path / "cut"
        stops = []
        for share in (0.5, 0.9):
            with pytest.raises(BudgetSpent):
                trained(run_at(server, cut, training, share * cost))
            assert cut.joinpath("answers/api.jsonl").is_file()
            stops.append(sorted(path.name for path in checkpoints.glob("update-*")))
        last = run_at(server, cut, training, 2 * cost)
        arm = trained(last)
        assert set(server.answered().values()) == {1}
        account = audited(last, arm)
    assert account.requested == account.delivered + sum(account.dropped.values())
    assert len(metrics_of(arm, "groups_requested")) == 3 and stops[1] and stops[0] != stops[1]
    if staleness == 0:  # the same groups in the same order, as if nothing had happened
        assert said(last) == said(whole)
        assert last.inputs.endpoints.paid()["api"]["cost"] == pytest.approx(cost)
