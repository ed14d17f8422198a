"""The job that checks the theory, in small: everything but PPO is done, tabled and drawn as in the whole."""

import json
from pathlib import Path

import pytest

from research.theory import job

PPO = {"value": 1.0, "low": 0.9, "high": 1.1, "exact": 1.0, "regret": 0.01, "uniform_regret": 0.5, "human_value": 0.9,
       "human_optimum": 1.1, "gap": 0.1, "bound": 0.3, "training_returns": [0.5, 1.0]}  # fmt: skip


@pytest.mark.slow
def test_figures_have_the_names_that_others_read_and_are_drawn(tmp_path: Path) -> None:
    from research.theory.theory_plot import draw

    size = job.Size(
        constructions=3, regret_constructions=2, coverage=6, lower_bounds=8, words=4, populations=3, histories=4,
        dialogues=(30, 40), curve=2, ppo_rewards=("per_turn",), studies=2,
    )  # fmt: skip
    result, points = job.measure(size, 0)
    result |= {"ppo": PPO, "ppo_by_reward": {"per_turn": PPO}, "full": False, "seed": 0}
    for reward in ("per_turn_reward", "terminal_reward"):
        assert {"a", "b", "slope", "low", "high"} <= set(result["growth"][reward])
    assert result["bound"]["violations"] == 0 < result["bound"]["points"]
    assert 0.9 < result["bound"]["tightest_ratio"] <= 1 + 1e-9
    assert set(result["lower_bounds"]) == {
        "delta_table_classifier", "epsilon_table_classifier", "delta_two_sample_test", "history_shift"
    }  # fmt: skip
    assert all(0 <= share <= 1 for share in (*result["coverage"].values(), *result["lower_bounds"].values()))
    json.dumps(result, allow_nan=False)
    printed = job.table(result)
    assert "0 violations" in printed and "at the worst size of shift" in printed
    assert "MISSED" in job.table(result | {"bound": result["bound"] | {"violations": 1}})
    late = result | {"ppo_by_reward": {"per_turn": PPO | {"regret": 0.03}}}
    assert job.table(late).count("MISSED") == printed.count("MISSED") + 1
    draw(tmp_path / "theory.png", result, points)
    assert (tmp_path / "theory.png").stat().st_size > 10_000
