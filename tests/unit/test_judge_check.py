"""``jobs/judge.py check``: fair judges pass, biased ones are found out, and bad input ends with one message."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.api.judging import JudgeCheck, check_judge
from calibrated_rl.cli import judge as job
from calibrated_rl.cli.main import COMMANDS
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Split
from calibrated_rl.errors import UserError
from calibrated_rl.judges.ratings import rating_of
from tests.support.fault_server import FaultServer, Messages
from tests.unit.test_judge import RUBRIC, vote

MADE_UP = "tests.support.made_up_judges:MadeUpJudge"


def rated_logs(folder: Path, count: int = 40) -> Path:
    """Dialogues of quality 1 to 5, as rated, of lengths that have nothing to do with it."""
    random = np.random.default_rng(0)
    lines = []
    for number, length in enumerate(random.permutation(count).tolist()):
        quality = number % 5 + 1
        turns = [{"side": "user", "text": f"number {number}"},
                 {"side": "policy", "text": f"quality {quality}" + " la" * length * 8}]  # fmt: skip
        metadata = {"rating": quality, "by": {"ann": str(quality)}, "note": "x"}
        lines.append({"id": number, "turns": turns, "metadata": metadata if number else {}})
    file = folder / "rated.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def config_of(folder: Path, judge: str = MADE_UP, endpoints: Any = None, **settings: Any) -> Path:
    file = folder / "judge.yaml"
    file.write_text(json.dumps({"judge": judge, "judge_config": settings, "endpoints": endpoints or {}}))
    return file


def checked(folder: Path, *, pairs: int = 19, rating: str = "rating", **settings: Any) -> JudgeCheck:
    return check_judge(rated_logs(folder), rating, config=config_of(folder, **settings), pairs=pairs, folder=folder)


def test_a_fair_judge_passes(tmp_path: Path) -> None:
    found = checked(tmp_path)
    assert (found.dialogues, found.unrated, found.judged, found.pairs, found.scale) == (40, 1, 39, 19, (1, 5))
    means = {name: estimate.mean for name, estimate in found.estimates.items()}
    assert means["spearman"] == means["kappa"] == means["slope"] == means["order_agreement"] == 1
    assert means["bias"] == means["first_preferred"] == means["inconsistent_pairs"] == 0
    length = found.estimates["length_score"]
    assert length.low < 0 < length.high and length == found.estimates["length_rating"]
    table = found.table().splitlines()
    assert table[0].startswith("39 dialogues of ") and "; 1 unrated" in table[0] and "19 pairs" in table[1]
    assert any(line.split()[:2] == ["votes_alpha", "undefined"] for line in table)
    assert checked(tmp_path, rating="by.ann").estimates["kappa"].mean == 1


def test_a_judge_that_likes_length_is_found_out(tmp_path: Path) -> None:
    estimates = checked(tmp_path, likes="length").estimates
    assert estimates["length_score_given_rating"].low > 0.9 and estimates["length_score"].low > 0.9
    assert not estimates["spearman"].excludes(0) and not estimates["length_rating"].excludes(0)


def test_a_judge_that_likes_the_first_is_found_out(tmp_path: Path) -> None:
    estimates = checked(tmp_path, likes="first").estimates
    assert estimates["first_preferred"].low > 0.2 and estimates["inconsistent_pairs"].low > 0.5
    assert estimates["spearman"].mean == 1, "it is fair to single dialogues"


def test_what_the_judge_does_not_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    found = checked(tmp_path, breaks="3", pairs=0)
    assert found.failed == {"judge: made up": 9} and found.judged == 30  # quality 3, and number 3
    assert "9 without a verdict (judge: made up 9)" in found.table() and found.estimates["spearman"].mean == 1
    with pytest.raises(UserError, match=r"no verdict on any of 39 dialogues \(judge: made up 39\)"):
        checked(tmp_path, breaks="quality")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": "ratin"}, r"no dialogue has a number as 'ratin'; .* rating \(39\), by.ann \(39\)"),
        ({"scale": (2, 5)}, "the scale is 2 to 5, and a dialogue has the rating 1"),
        ({"scale": (5, 1)}, "the scale 5 to 1 is none"), ({"config": None}, "is of no run"),
        ({"limit": -1}, "limit"), ({"config": "nobody.yaml"}, "nobody.yaml"),
        ({"source": "nothing.jsonl"}, "there is no file or folder nothing.jsonl"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(change: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "source": rated_logs(tmp_path),
        "rating": "rating",
        "config": config_of(tmp_path),
    } | dict(change)
    with pytest.raises(UserError, match=message) as refused:
        check_judge(**arguments)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("judge_config: {}", "names no judge"), ("judgge: a.b:C", "did you mean 'judge'"),
        (f"judge: {MADE_UP}\njudge_config: {{like: length}}", "did you mean 'likes'"),
        ("judge: tests.unit.test_judge:Fair", "it has no Config"), ("judge: three", "import path"),
        (f"judge: {MADE_UP}\nendpoints: {{a: {{model: m}}}}", "endpoints.a.base_url is missing"),
        ("judge: tests.unit.test_judge_check:Silent", "has no method 'verdict'"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        check_judge(rated_logs(tmp_path), "rating", config=tmp_path / "judge.yaml")


class Silent:
    from tests.support.made_up_judges import MadeUpJudge

    Config = MadeUpJudge.Config

    def __init__(self, config: Any, *, endpoints: Any) -> None:
        pass

    async def outcome(self, *arguments: Any) -> Outcome:
        return Outcome(reward=0.0, success=False)


def test_ratings_of_a_judged_outcome_are_the_tasks_own() -> None:
    def dialogue(outcome: Outcome | None, **metadata: Any) -> Dialogue:
        scenario = Scenario(id="s", split=Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="")
        return Dialogue(id="d", task="", scenario=scenario, turns=(), ending="x", kind="log", outcome=outcome,
                        annotations={"metadata": metadata})  # fmt: skip

    own = dialogue(Outcome(reward=1.0, success=True, turn_rewards=(0.5,)))
    assert (rating_of(own, "reward"), rating_of(own, "success")) == (1.5, 1.0)
    judged = dialogue(Outcome(reward=0.1, success=False, details={"task_reward": 2.0, "task_success": True}))
    assert (rating_of(judged, "reward"), rating_of(judged, "success")) == (2.0, 1.0)
    alone = dialogue(Outcome(reward=0.1, success=False, details={"task_reward": None, "task_success": None}))
    assert rating_of(alone, "reward") is None and rating_of(dialogue(None), "success") is None
    said = dialogue(None, a={"b": True}, **{"c.d": 3, "e": "four", "f": float("inf"), "g": None})
    assert [rating_of(said, key) for key in ("a.b", "c.d", "e", "f", "g", "a", "h.i")] == [1, 3] + [None] * 5


def test_the_command_with_a_model_that_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(messages: Messages, seed: int) -> str:
        case = messages[-1]["content"]
        if "First dialogue" in case:
            return json.dumps({"reason": "", "better": "first"})
        quality = int(case.partition("quality ")[2][0])
        return "no idea" if "number 7" in case else vote(quality, max(1, quality - seed % 2))

    assert "judge" in COMMANDS
    with FaultServer(say=say) as server:
        endpoints = {"m": {"base_url": server.url, "model": "x"}}
        config = config_of(
            tmp_path, "calibrated_rl.judges.rubric:RubricJudge", endpoints, model="endpoint:m", rubric=RUBRIC
        )
        command = [
            "judge", "check", str(rated_logs(tmp_path)), "--config", str(config), "--rating", "rating", "--limit", "20",
            "--pairs", "5", "--scale", "0,5", "--answers", str(tmp_path), "--out", str(tmp_path / "out.json"),
        ]  # fmt: skip
        monkeypatch.setattr("sys.argv", command)
        job.main()
        out, asked = capsys.readouterr().out, len(server.served)
        job.main()
        assert len(server.served) == asked and set(server.answered().values()) == {1}
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["judged"] + sum(result["failed"].values()) == 20 and result["scale"] == [0, 5]
    assert result["estimates"]["spearman"]["mean"] > 0.9 and result["estimates"]["votes_alpha"]["mean"] > 0.9
    assert result["estimates"]["first_preferred"]["mean"] == 0.5 and result["seed"] == 0
    assert "position bias" in out and (tmp_path / "answers" / "m.jsonl").is_file()


@pytest.mark.parametrize("wrong", [["--scale", "1"], ["--scale", "a,b"], ["--limit", "-1"], ["--seed", "x"]])
def test_arguments_that_are_refused(wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["judge", "check", "x.jsonl", "--rating", "r", *wrong])
    with pytest.raises(UserError, match=wrong[0]):
        job.main()
