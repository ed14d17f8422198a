"""Aligning by several methods: what is measured, how it is compared, what is refused."""

import math
import sys

import pytest

from calibrated_rl.calibration.turing import Turing
from calibrated_rl.errors import UserError
from calibrated_rl.shift.in_run import ExactReplies, bound_of
from calibrated_rl.shift.stakes import Stakes
from tests.support.paths import MICRO
from tools.align.job import main, wanted
from tools.align.measure import method_of, weighted_sums
from tools.align.table import table

REPLIES = ExactReplies(
    human=[math.log(0.5)] * 3, simulator=[math.log(0.25), math.log(0.5), math.log(0.1)],
    turn=[1, 2, 1], dialogue=["a", "a", "b"],
)  # fmt: skip


TURING = "calibrated_rl.calibration.turing:Turing"


def test_sums_of_dialogues_by_hand_have_the_mean_of_the_bound() -> None:
    """Total variations of single replies: a half, none, four fifths; rewards of 1 after two turns, then after one."""
    stakes = Stakes(terminal=1.0, per_turn=1.0, horizon=2)
    found = weighted_sums(REPLIES, stakes)
    assert found == pytest.approx({"a": 3 * 0.5 + 2 * 0.0, "b": 3 * 0.8})
    assert bound_of(REPLIES, stakes)["mean"] == pytest.approx(sum(found.values()) / 2)


def test_names_have_what_the_result_hangs_on() -> None:
    method = method_of(f"{TURING} discriminator.width=8 steps=3 (tuning)")
    assert isinstance(method, Turing) and (method.config.discriminator.width, method.config.steps) == (8, 3)
    assert method_of("none (held_out)") is None
    assert wanted(["a:B  x=1"], "tuning") == ["none (tuning)", "a:B x=1 (tuning)"]
    assert wanted([], "held_out")[2] == "calibrated_rl.calibration.adversarial:Adversarial (held_out)"


def test_each_method_is_compared_with_the_first_that_aligns() -> None:
    def result(*sums: float) -> dict[str, object]:
        mean = {"mean": sum(sums) / len(sums), "low": 0.0, "high": 1.0}
        by_dialogue = {str(i): value for i, value in enumerate(sums)}
        return {"bound": mean, "tv": mean, "kl": mean, "by_dialogue": by_dialogue, "monitor_nll": 2.0, "seconds": 3.4}

    rows = {name: result(*sums) for name, sums in
            {"none (tuning)": (0.9, 0.9), "a (tuning)": (0.5, 0.7), "b (tuning)": (0.4, 0.5)}.items()}  # fmt: skip
    lines = table(rows).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "none", "a", "b"]
    assert lines[1].count("]") == lines[2].count("]") == 2 and "-0.150 [" in lines[3] and lines[3].endswith("  3")


def test_where_no_program_says_how_likely_a_reply_is_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["align.py", str(MICRO), "human=''", "arms=[start]", "pretraining.human=''"])
    with pytest.raises(UserError, match="human is empty: only where it is a program"):
        main()
    monkeypatch.setattr(sys, "argv", ["align.py", str(MICRO), "--hardware", "cpu", "--method", f"{TURING} step=3"])
    with pytest.raises(UserError, match=f"--method {TURING}.*'step'; did you mean 'steps'"):
        main()
    monkeypatch.setattr(sys, "argv", ["align.py", str(MICRO), "--split", "monitor"])
    with pytest.raises(UserError, match="--split"):
        main()
