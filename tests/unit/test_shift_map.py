"""Map and regression of the claims, against values by hand."""

from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.errors import UserError
from tools.claims.shift_map import Point, draw, points_of, read_cells, regression, sum_over_turns, table, winners


def metric(*rows: tuple[float, int]) -> dict[str, Any]:
    return {"by_turn": [{"turn": i, "mean": mean, "count": count} for i, (mean, count) in enumerate(rows, start=1)]}


def arm(reward: float, **shift: Any) -> dict[str, Any]:
    record = {"policy": None, "simulator": None} | shift
    return {"held_out_greedy": {"reward": {"mean": reward}}, "shift": [record] if shift else []}


def point(cell: str, name: str, loss: float, epsilon: float, delta: float) -> Point:
    return Point(cell=cell, arm=name, reward=1 - loss, loss=loss, epsilon=epsilon, delta=delta)


def test_a_turn_counts_as_often_as_dialogues_have_it() -> None:
    assert sum_over_turns(metric((0.5, 10), (0.2, 5))) == pytest.approx(0.5 + 0.1)


def test_an_arm_suffers_the_shift_of_what_it_learns_from() -> None:
    both = {"policy": metric((0.5, 4)), "simulator": metric((0.25, 4))}
    arms = {"oracle": arm(0.8), "static": arm(0.5, **both), "calibrated": arm(0.7, **both), "cloned": arm(0.4)}
    static, calibrated = points_of("large-small", {"arms": arms})
    assert (static.arm, static.epsilon, static.delta, static.loss) == ("static", 0.5, 0.0, pytest.approx(0.3))
    assert (calibrated.arm, calibrated.epsilon, calibrated.delta) == ("calibrated", 0.0, 0.25)
    with pytest.raises(UserError, match="no oracle to compare with"):
        points_of("large-small", {"arms": {"static": arms["static"]}})


def test_the_regression_finds_what_the_losses_were_made_of() -> None:
    points = [
        point(f"{simulator}-{policy}", name, 0.1 + 0.5 * epsilon + 0.25 * delta, epsilon, delta)
        for i, simulator in enumerate(("small", "medium", "large"))
        for j, policy in enumerate(("small", "large"))
        for name, epsilon, delta in (("static", 0.1 + j + 0.3 * i, 0.0), ("interactive", 0.0, 0.2 + i + 0.1 * j))
    ]
    found = regression(points, resamples=100)
    assert [found[name]["mean"] for name in ("constant", "epsilon", "delta", "explained")] == pytest.approx(
        [0.1, 0.5, 0.25, 1.0]
    )
    assert found["delta"]["low"] == pytest.approx(0.25) and found["cells"] == 6
    with pytest.raises(UserError, match="over 2 cells says nothing"):
        regression([each for each in points if each.cell.startswith("small")])
    assert "epsilon: 0.50 [0.50, 0.50]" in table(points, winners(points), found)
    assert len(draw(points).axes) == 3


def test_pairs_that_the_sum_calls_right() -> None:
    points = [
        point("a-a", "static", 0.1, 0.5, 0.0), point("a-a", "interactive", 0.3, 0.0, 0.9),  # right
        point("a-a", "calibrated", 0.0, 0.0, 0.7),  # wrong against static, right against interactive
        point("b-a", "static", 0.1, 0.5, 0.0), point("b-a", "cloned", 0.12, 0.1, 0.0),  # too near to each other
        point("c-a", "static", 0.1, 0.5, 0.0), point("c-a", "calibrated", 0.4, 0.0, 0.5),  # equal sums say nothing
    ]  # fmt: skip
    assert winners(points) == {"pairs": 3, "right": 2}


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_cells(tmp_path, None)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="has no finished cell"):
        read_cells(tmp_path, None)
