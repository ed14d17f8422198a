"""Which histories are worth asking humans about, and the file that takes their replies and comes back as logs."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from calibrated_rl.calibration.sft import log_samples, log_view
from calibrated_rl.calibration.worth_asking import disagreement, most_worth_asking, similarity
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Dialogue, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.asking import Visit, choose, committee, latest_visits
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.logs.asked import asked_line, write_lines
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.run.inputs import read_inputs
from calibrated_rl.runtime.progress import Progress
from tests.support.paths import MICRO


def said(*texts: str) -> tuple[Turn, ...]:
    """A history: the policy's greeting, then turn by turn."""
    sides = itertools.cycle((Side.POLICY, Side.USER))
    sources = itertools.chain([Source.GREETING], itertools.cycle((Source.SIMULATOR, Source.POLICY)))
    return tuple(
        Turn(side=side, text=text, source=source) for text, side, source in zip(texts, sides, sources, strict=False)
    )


def test_disagreement_is_zero_where_all_reply_alike_and_log_k_where_none_does() -> None:
    alike = np.log(np.full((3, 2, 3), 0.25))
    assert disagreement(alike) == pytest.approx(0.0, abs=1e-12)
    apart = np.full((2, 4, 2), -np.inf)
    apart[0, :, 0] = apart[1, :, 1] = math.log(0.5)
    assert disagreement(apart) == pytest.approx(math.log(2))


def test_disagreement_of_draws_that_stand_for_the_whole_distribution_is_the_divergence() -> None:
    """Two simulators over two replies; each reply is drawn as often as it is probable, so that the mean is exact."""
    first, second = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    draws = [[0, 0, 0, 1], [0, 1, 1, 1]]
    table = np.log(np.array([[[first[x], second[x]] for x in of] for of in draws]))
    mean = (first + second) / 2
    exact = 0.5 * sum(float((p * np.log(p / mean)).sum()) for p in (first, second))
    assert disagreement(table) == pytest.approx(exact)


@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 3, 3)])
def test_disagreement_needs_draws_of_two(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least two"):
        disagreement(np.zeros(shape))


def test_histories_alike_in_words_are_similar() -> None:
    histories = [
        said("hello", "a table", "which day ?"), said("hello", "a table", "which day ?"),
        said("hello", "a table", "which time ?"), said("hello", "hm", "goodbye now"),
    ]  # fmt: skip
    k = similarity(histories)
    assert_allclose(np.diag(k), 1.0)
    assert k[0, 1] == pytest.approx(1.0) and 1 > k[0, 2] > k[0, 3] >= 0
    assert_allclose(k, k.T)
    with pytest.raises(ValueError, match="empty history"):
        similarity([()])


def value(chosen: tuple[int, ...], d: np.ndarray, k: np.ndarray) -> float:
    return float(d @ k[:, list(chosen)].max(axis=1)) if chosen else 0.0


def test_often_visited_comes_first_and_no_place_twice() -> None:
    """Three visits of one place outweigh a single one with twice their disagreement; a second of them adds nothing."""
    d, k = np.array([0.2, 0.2, 0.2, 0.4, 0.0]), np.eye(5)
    k[:3, :3] = 1.0
    assert most_worth_asking(d, k, 2) == [0, 3]
    assert most_worth_asking(d, k, 9) == [0, 3, 1, 2, 4]


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_what_is_picked_reaches_the_share_of_the_best_that_theory_promises(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    d, points = random.random(7), random.random((7, 3))
    norms = np.linalg.norm(points, axis=1)
    k = points @ points.T / np.outer(norms, norms)
    chosen = most_worth_asking(d, k, count)
    assert len(set(chosen)) == count
    best = max(value(subset, d, k) for subset in itertools.combinations(range(7), count))
    assert value(tuple(chosen), d, k) >= (1 - 1 / math.e) * best - 1e-12
    firsts = [value((i,), d, k) for i in range(7)]
    assert firsts[chosen[0]] == pytest.approx(max(firsts))


SCENARIO = FrontDesk(FrontDesk.Config()).scenarios(Split.CALIBRATION, 1)[0]


def dialogue(*texts: str, name: str = "calibrated-0-3-1-0") -> Dialogue:
    return Dialogue(
        id=name, task="front_desk", scenario=SCENARIO, turns=said(*texts), ending="left", outcome=None, kind="rollout"
    )


def test_at_random_is_a_draw_of_all_and_by_worth_is_not() -> None:
    visits = [Visit(dialogue=dialogue("hello", "hm", f"word{i} ?", "yes"), index=3) for i in range(20)]
    drawn = choose(visits, None, 5, 0)
    assert len({id(v) for v in drawn}) == 5 and drawn == choose(visits, None, 5, 0) != choose(visits, None, 5, 1)
    d = np.zeros(20)
    d[[4, 9]] = 1.0, 2.0
    assert choose(visits, d, 2, 0) == [visits[9], visits[4]]


def test_an_answered_line_comes_back_as_a_log_of_which_only_the_reply_is_learned(tmp_path: Path) -> None:
    history = said(SCENARIO.greeting, "a table please", "which day ?", "tuesday", "which time ?")
    file = tmp_path / "ask.jsonl"
    write_lines(file, [asked_line("ask-1", SCENARIO, history, "at seven"), asked_line("ask-2", SCENARIO, history)])
    reader = JsonLines(JsonLines.Config(path=str(file)), task=FrontDesk(FrontDesk.Config()))
    (log,) = reader.read(Split.CALIBRATION)
    assert [p.line for p in reader.problems] == [2] and "blank" in str(reader.problems[0])
    assert log.outcome is None and log.ending == "asked" and dict(log.scenario.goal) == dict(SCENARIO.goal)
    assert [turn.source for turn in log.turns[1:]] == [
        Source.SIMULATOR, Source.POLICY, Source.SIMULATOR, Source.POLICY, Source.LOG,
    ]  # fmt: skip
    texts = [turn.text for turn in log.turns] + [SCENARIO.policy_instructions, SCENARIO.user_instructions]
    chat = ChatTokens(read_tokenizer(make_tiny(tmp_path / "tiny", texts * 20, 0), "simulator"), "simulator")
    (sample,) = log_samples([log], Side.USER, chat)
    assert set(sample.tokens.turns[sample.tokens.mask]) == {5}
    assert log_samples([log], Side.POLICY, chat) == [] and not log_view(log, Side.POLICY, chat).mask.any()
    with pytest.raises(UserError, match="exists, and humans may have replied in it"):
        write_lines(file, [])


def test_replies_are_read_beside_the_logs_and_logs_among_them_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ask.jsonl"
    changes = [f"calibration.asked={file}"]
    history = said(SCENARIO.greeting, "a table please", "which day ?")
    write_lines(file, [asked_line("ask-1", SCENARIO, history, "tuesday")])
    inputs = read_inputs(load_config(MICRO, changes), tmp_path, Progress())
    assert [log.id for log in inputs.human_logs(Split.CALIBRATION)][120:] == ["log-ask-1"]
    assert len(inputs.logs[Split.CALIBRATION]) == 120 and len(inputs.human_logs(Split.MONITOR)) == 30
    placebo = read_inputs(load_config(MICRO, [*changes, "calibration.source=pretraining"]), tmp_path, Progress())
    assert all(log.ending != "asked" for log in placebo.human_logs(Split.CALIBRATION))
    file.write_text(json.dumps({"id": "mine", "turns": [{"side": "user", "text": "hi"}]}))
    with pytest.raises(UserError, match="has the dialogue 'mine', which is no reply that was asked for"):
        read_inputs(load_config(MICRO, changes), tmp_path, Progress())
    file.unlink()
    assert not read_inputs(load_config(MICRO, changes), tmp_path, Progress(), training=False).asked


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"turns": [{"side": "user", "text": "hi"}, {"side": "policy", "text": "yes"}]}, "last turn is not the user's"),
        ({"turns": [{"side": "user", "text": "hi"}], "reward": 1, "success": True}, "exclude each other"),
        ({"turns": [{"side": "user", "text": "hi"}], "asked": 1}, "'asked' is not of type boolean"),
    ],
)
def test_asked_lines_that_do_not_fit_are_refused(line: dict[str, object], reason: str, tmp_path: Path) -> None:
    fits = {"id": 2, "turns": [{"side": "user", "text": "hi"}]}
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps(each) for each in ({"id": 1, "asked": True} | line, fits)))
    reader = JsonLines(JsonLines.Config(path=str(tmp_path / "f.jsonl")), task=FrontDesk(FrontDesk.Config()))
    assert reason in str(reader.problems[0])


def test_the_committee_is_the_newest_alignments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fitted(*names: str) -> None:
        for name in names:
            (tmp_path / "models" / name).mkdir(parents=True)
            (tmp_path / "models" / name / "fit.json").write_text("{}")

    def names() -> list[str]:
        return [path.name for path in committee(tmp_path, "calibrated-0")]

    with pytest.raises(UserError, match="no calibrated simulator yet"):
        names()
    fitted("calibrated")
    with pytest.raises(UserError, match="one simulator alone"):
        names()
    fitted("uncalibrated")
    assert names() == ["calibrated", "uncalibrated"] and "the only alignment" in caplog.text
    fitted("calibrated-0-5", "calibrated-1-20", "calibrated-0-10", "calibrated_once-0-30")
    assert names() == ["calibrated-0-10", "calibrated-0-5", "calibrated"]
    for member in range(2):
        (tmp_path / "models" / "calibrated-0-10" / f"member-{member}").mkdir()
    assert names() == ["member-0", "member-1"]


def test_a_replay_without_replies_to_the_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dialogue of training in which a user replied"):
        latest_visits(tmp_path / "nowhere", 5, 3)
