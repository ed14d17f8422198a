"""The report: what it shows, what it escapes, and what it says about figures that are missing."""

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.report.arms import builtin_styles
from calibrated_rl.report.html import write_report
from calibrated_rl.report.plots.results import running_mean
from calibrated_rl.report.rendering import render
from calibrated_rl.report.run_files import RunFiles, read_run
from calibrated_rl.report.sections import optimisation
from calibrated_rl.report.sections.variants import sweeps
from calibrated_rl.report.text import table
from calibrated_rl.report.values import Interval, by_turn, count, duration, interval, number, over_what

NASTY = '<script>alert("x")</script> & $\\frac{$'


def ci(mean: float, half: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def held_out(reward: float) -> dict[str, Any]:
    return {"reward": ci(reward), "success": ci(reward + 0.1), "turns": ci(6.2, 0.4)}


def summary() -> dict[str, Any]:
    arms = {}
    for index, arm in enumerate(builtin_styles()):
        reward = 0.1 + 0.08 * index
        arms[arm] = {
            "held_out": held_out(reward),
            "held_out_greedy": held_out(reward + 0.02),
            "held_out_shifted": held_out(reward - 0.07),
            "endings": {
                "booked": 0.3 + 0.05 * index,
                "left": 0.5 - 0.05 * index,
                "max_turns": 0.15,
                NASTY: 0.05,
            },
            "train_reward_last": 0.913 if arm == "interactive" else reward + 0.05,
            "policy_tokens": 1_234_567,
            "user_tokens": 45_678,
            "human_turns": 950,
            "updates": 40,
            "seconds": 192.0,
        }
    names = ("turn_length", "disclosure", "leaving", "agreement", "typing")

    def profile(scale: float) -> dict[str, Any]:
        return {name: ci(scale * (i + 1) / 5, 0.03) for i, name in enumerate(names)}

    return {
        "name": "unit & run", "task": "front_desk", "label": "demonstration", "seeds": [1, 2],
        "arms": arms,
        "paired_greedy": {"calibrated-interactive": ci(0.16), "calibrated-static": ci(0.01),
                          "calibrated-cloned": None},
        "paired": {"calibrated-interactive": ci(0.11), "calibrated-static": ci(0.21)},
        "gap_closed_greedy": {"calibrated": ci(0.62), "interactive": None},
        "gap_closed": {"calibrated": ci(0.05)},
        "simulator": {
            "before": {"human_turn_nll": {"value": 2.1, "low": 2.0, "high": 2.2},
                       "classifier_accuracy": ci(0.93),
                       "classifier_accuracy_acts": ci(0.81), "profile": profile(1.8),
                       "tv_lower_bound_by_turn": [0.7, 0.6, 0.55, None, 0.5]},
            "after": {"human_turn_nll": 1.2, "classifier_accuracy": ci(0.57),
                      "classifier_accuracy_acts": ci(0.54),
                      "profile": profile(1.05), "tv_lower_bound_by_turn": [0.12, 0.1, 0.14, 0.2, 0.21]},
            "human": {"profile": profile(1.0)},
            "null_band": {"low": 0.46, "high": 0.55},
        },
        "versions": {"torch": "2.13.0", "vllm": "0.32.0"},
    }  # fmt: skip


def metrics() -> pa.Table:
    noise = random.Random(0)
    rows = [
        (arm, seed, update, name, height * (1 - np.exp(-update / 12)) + noise.gauss(0, 0.03))
        for i, arm in enumerate(("static", "interactive", "calibrated", "oracle"))
        for seed in (1, 2)
        for update in range(40)
        for name, height in (("reward", 0.5 + 0.1 * i), ("success", 0.8), ("turns", 6.0), ("grad_norm", 1.0),
                             ("entropy", 0.7 - 0.1 * i), ("kl_sampler_k3", 0.01),
                             ("effective_sample_share", 0.9))
    ]  # fmt: skip
    columns = zip(*rows, strict=True)
    names = ("arm", "seed", "update", "name", "value")
    return pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})


def variants() -> dict[str, Any]:
    """A sweep of one number, given out of order, and a change of another kind."""

    def variant(change: str, reward: float) -> dict[str, Any]:
        arms = {"interactive": {"held_out": held_out(reward)}, "calibrated": {"held_out": held_out(0.5)}}
        simulator = {"before": {"classifier_accuracy": ci(0.61)}, "after": {"classifier_accuracy": 0.52}}
        return {"change": [change], "arms": arms, "paired": {"calibrated-interactive": ci(0.5 - reward)},
                "simulator": simulator, "seeds": [1, 2, 3]}  # fmt: skip

    return {
        "cooperative_050": variant("pretraining.human_config.cooperativeness=0.5", 0.37),
        "cooperative_000": variant("pretraining.human_config.cooperativeness=0", 0.48),
        "placebo": variant(f"calibration.source={NASTY}", 0.12),
        "one_of_a_kind": variant("training.updates=60", 0.2),
    }


def with_variants(run: Path) -> Path:
    (run / "summary.json").write_text(json.dumps(summary() | {"variants": variants()}))
    (run / "config.yaml").write_text("pretraining: {human_config: {cooperativeness: 1.0}}\ntraining: {updates: 30}\n")
    return run


def samples() -> list[dict[str, Any]]:
    turns = [["policy", "hello, how can i help?"], ["user", "a room pls"], ["policy", "for how many nights?"],
             ["user", NASTY], ["policy", "booked: room, 3 nights, sea view. is that right?"],
             ["user", "yes thx"]]  # fmt: skip
    arms = {arm: {"turns": turns, "ending": "booked", "reward": 0.84} for arm in ("static", "calibrated")}
    return [{"scenario": {"id": f"held-out-{i}", "goal": {"nights": 3, "note": NASTY}}, "arms": arms}
            for i in range(3)]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "samples.json").write_text(json.dumps(samples()))
    pq.write_table(metrics(), tmp_path / "metrics.parquet")
    return tmp_path


def test_page_shows_arms_training_reward_and_verdicts(run: Path) -> None:
    page = write_report(run).read_text()
    for look in builtin_styles().values():
        assert look.label in page and look.color in page
    # interactive: greedy, sampled, in training
    assert "0.36<small>[0.31, 0.41]</small></td><td>0.34<small>[0.29, 0.39]</small></td><td>0.91</td>" in page
    assert "calibrated (greedy) earns more than interactive on held-out users: +0.16 [0.11, 0.21]" in page
    assert "0.62<small>" in page and "0.05<small>" not in page, "the gap that the deployed policy closes"
    assert "No difference shown between calibrated and static" in page
    assert "Not measured: calibrated − cloned" in page
    assert "demonstration" in page and "1.2 M" in page and "3.2 min" in page and "0.32.0" in page
    plots = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(plots) == 8 and "Variants" not in page
    assert all(b"<svg" in base64.b64decode(plot) for plot in plots)


@pytest.mark.slow
def test_updates_that_taught_nothing_and_dialogues_that_broke_are_named(run: Path) -> None:
    assert "Updates without signal" not in write_report(run).read_text()
    shares = [0.5, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.5]
    rows = [("calibrated", seed, update, "groups_with_signal", share if seed == 1 else 1.0)
            for seed in (1, 2) for update, share in enumerate(shares)]  # fmt: skip
    rows += [("calibrated", 1, update, "groups_discarded", 2.0) for update in range(3)]
    names = ("arm", "seed", "update", "name", "value")
    table_of = pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    pq.write_table(table_of, run / "metrics.parquet")
    whole = summary()
    whole["arms"]["calibrated"] |= {"policy_tokens_discarded": 1200.0, "not_scored": 3}
    whole |= {
        "flaws": {"policy/repeat": 4}, "dropped": {"user_role_confusion": 7}, "sampled": {"policy": 800, "user": 900},
        "cut": {"policy": 20, "user": 9},
        "tries": {"rollout/whole": 90, "evaluation/whole": 95, "rollout/user": 7, "evaluation/user": 5,
                  "rollout/engine": 3},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(whole))
    page = write_report(run).read_text()
    assert "<li>calibrated, seed 1: 5 of 8 updates, at most 3 in a row.</li>" in page and "seed 2: " not in page
    assert "calibrated: 6 groups without signal gave way to others (1200 tokens of the policy a seed" in page
    for cells in (
        ("turn marked by a guardrail", "policy: repeat", "4"),
        ("dropped and run again", "user role confusion", "7"),
        ("turn cut at the token limit", "policy", "20 of 800 (2.5 %)"),
        ("turn cut at the token limit", "user", "9 of 900 (1 %)"),
        ("tries to run a dialogue", "broken by the user model", "12 of 200 (6 %)"),
        ("tries to run a dialogue", "lost with a replica", "3 of 200 (1.5 %)"),
        ("held-out dialogue, calibrated", "broke in every try: not scored", "3"),
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page


def population(total: float, words: float) -> dict[str, Any]:
    band = [80.0, 100.0]
    figures = {
        "similarity_style": ci(total + 3, 4) | {"null_band": band, "far": "below", "reading": "apart"},
        "similarity_total": ci(total, 4) | {"null_band": band, "far": "below", "reading": "apart"},
        "wasserstein_turn_words": ci(words, 0.2) | {"null_band": [0.0, 0.5], "far": "above", "reading": NASTY},
        "coverage": {"mean": None, "low": None, "high": None},
    }
    return {"figures": figures, "refused": {"mauve": "too few <turns>"}}


def test_dialogues_of_the_simulator_are_set_beside_those_of_people(run: Path) -> None:
    whole = summary()
    for when, total, words in (("before", 40.0, 1.0), ("after", 90.0, 1.4)):
        curve = [{"probability": 0.1, "outcome": 0.05, "count": 90}, {"probability": 0.6, "outcome": 0.7, "count": 10}]
        whole["simulator"][when] |= {"populations": population(total, words), "ending_curve": curve,
                                     "ending_f1": ci(0.5), "ending_ece": ci(0.1), "ending_bias": ci(0.0)}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(whole))
    page = write_report(run).read_text()
    # Both similarities come nearer, words a turn do not; coverage is no number, mauve was refused.
    assert (
        "2 of 3 metrics are nearer to the band of the human dialogues; further from it: wasserstein_turn_words." in page
    )
    assert "<td>similarity_total</td><td>40.00<small>[36.00, 44.00]</small></td><td>90.00" in page
    assert "<td>coverage</td>" not in page and "Not measured: mauve: too few &lt;turns&gt;" in page
    assert "F1: 0.50 → 0.50." in page and "<script" not in page
    assert len(re.findall("data:image", page)) == 10


def test_metrics_of_an_earlier_version_have_their_names_of_today(run: Path) -> None:
    old = summary()
    for when in ("before", "after"):
        populations = population(40.0, 1.0)
        for name in ("style", "total"):
            populations["figures"][f"likeness_{name}"] = populations["figures"].pop(f"similarity_{name}")
        populations["figures"] |= {"figures_tv": ci(0.2), "figures_share": ci(0.3)}
        populations["refused"] = {"likeness": "too few dialogues"}
        old["simulator"][when]["populations"] = populations
    (run / "summary.json").write_text(json.dumps(old))
    page = write_report(run).read_text()
    assert "likeness" not in page and "<td>similarity_total</td>" in page and "Not measured: similarity:" in page
    # A metric of a user's own estimator keeps its name.
    assert "<td>surface_tv</td>" in page and "<td>figures_share</td>" in page


def test_shift_by_a_classifier_is_drawn_over_its_band(run: Path) -> None:
    """Where no program tells the exact shift: an index, with what two halves of people would give."""
    rows = [{"turn": turn, "count": 10, **ci(0.3)} for turn in (1, 2)]
    figure = {"by_turn": rows, **ci(0.3)}
    index = {"mean": 0.6, "early": 0.4, "late": 0.2, "null_band": [0.0, 0.2]}
    record = {"policy": figure, "simulator": figure, "history_shift": figure, "shift_index": index, "bound": None,
              "exploitation": None, "null_band": [0.0, 0.1]}  # fmt: skip
    whole = summary()
    whole["arms"]["calibrated"]["shift"] = [record | {"update": 0}, record | {"update": 10, "null_band": None}]
    figures = {"success_ece": ci(0.2), "rank_spearman": ci(-0.4), "rank_kendall": ci(-0.3), "exploitation": ci(0.5)}
    whole["shift"] = {"transfer": {"all": {"policies": 8, **figures}, "calibrated": {"policies": 4}}}
    (run / "summary.json").write_text(json.dumps(whole))
    page = write_report(run).read_text()
    assert "checkpoints of all arms</td><td>8</td><td>0.20<small>" in page and "−0.40<small>" in page
    assert "Hatched on the scale: what that finds between two halves of the human dialogues." in page
    assert 'alt="shift index (no bound) and exploitation"' in page
    assert len(re.findall("data:image", page)) == 10


def test_page_is_self_contained_and_escaped(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<script" not in page and "unit & run" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; $" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", page)


@pytest.mark.slow
def test_same_run_gives_the_same_bytes(run: Path) -> None:
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_stand_in_for_people_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"held_out_user": "proxy <b>"}))
    page = write_report(tmp_path).read_text()
    assert "meet the same proxy &lt;b&gt;." in page and "held-out users" not in page


def test_empty_run_says_not_measured(tmp_path: Path) -> None:
    page = write_report(tmp_path).read_text()
    assert page.count('<p class="missing">not measured</p>') == 13
    assert "data:image" not in page


def test_parts_that_are_missing_do_not_cost_the_rest(tmp_path: Path) -> None:
    partial = {
        "arms": {"start": {}, "mine": {"held_out": {"reward": 0.25, "success": {"mean": float("nan")}}}},
        "simulator": {"before": {"human_turn_nll": 2.0}, "after": None},
        "paired": None,
    }
    (tmp_path / "summary.json").write_text(json.dumps(partial))
    page = write_report(tmp_path).read_text()
    assert "mine" in page and "<td>0.25</td><td>–</td>" in page and "nan" not in page.lower().split("base64")[0]
    assert "Null band: not measured." in page


def test_variants_are_tabled_and_swept_numbers_plotted(run: Path) -> None:
    page = write_report(with_variants(run)).read_text()
    row = "0.37<small>[0.32, 0.42]</small></td><td>0.50<small>[0.45, 0.55]</small></td><td>+0.13"
    assert "pretraining.<wbr>human_config.<wbr>cooperativeness=0.5</small></td><td>3</td><td>" + row in page
    assert "<script" not in page and "this run itself has 1." in page and "By updates" not in page
    assert len(re.findall("data:image", page)) == 9
    (key, points), *others = sweeps(read_run(run)).items()
    assert key == "pretraining.human_config.cooperativeness" and not others
    rewards = [figures["arms"]["interactive"]["held_out"]["reward"]["mean"] for _, figures in points]
    assert [x for x, _ in points] == [0, 0.5, 1] and rewards == pytest.approx([0.48, 0.37, 0.34])


def test_a_demonstration_shows_dashes_its_label_and_its_dialogues(tmp_path: Path) -> None:
    arms = {"start": {"train_reward_last": None, "updates": 0}, "static": {"train_reward_last": 13.5, "updates": 3}}
    simulator = {"before": {"human_turn_nll": ci(74.2), "tv_lower_bound_by_turn": [0.7, 0.5]}}
    told = {"arms": arms, "label": "demonstration", "simulator": simulator}
    (tmp_path / "summary.json").write_text(json.dumps(told))
    (tmp_path / "samples.json").write_text(json.dumps(samples()))
    page = write_report(tmp_path).read_text()
    assert 'class="label">demonstration<' in page and "do not say which policy is better with human users" in page
    assert "</td><td>–</td><td>13.50</td><td>–</td><td>–</td><td>–</td></tr>" in page and "gap closed" not in page
    assert "Each arm with its own user." in page and "yes thx" in page and "reward 0.84" in page
    assert "It is an index, no bound" in page
    lines = table(told).splitlines()
    assert lines[3].split() == ["static", "–", "–", "–", "–", "13.50", "–", "–", "–"]
    assert lines[-1] == "Note: demonstration" and "74.20 [74.15, 74.25]      –" in lines[-3]


def test_exact_distances_stand_beside_the_classifiers(run: Path) -> None:
    figures = summary()
    note = "3 of 9 replies have probability 0"
    by_user_turn = [{"turn": 1, "count": 9, **ci(0.7)}, {"turn": 3, "count": 4, **ci(0.4)}]
    figures["simulator"]["before"] |= {
        "exact_tv": ci(0.62) | {"by_turn": by_user_turn},
        "exact_kl": ci(6.8) | {"notes": [note]},
    }
    figures["simulator"]["after"] |= {"exact_tv": ci(0.11) | {"by_turn": by_user_turn}, "exact_kl": ci(0.3)}
    (run / "summary.json").write_text(json.dumps(figures))
    page = write_report(run).read_text()
    assert "human replies is 0.62 before calibration and 0.11 after" in page
    assert "gives a lower bound" in page and "no bound" not in page
    assert f"exact kl, before calibration: {note}." in page and "9 at turn 1, 4 at turn 3." in page
    assert [(turn, value.mean) for turn, value in by_turn(by_user_turn)] == [(1, 0.7), (3, 0.4)]
    assert by_turn([0.5, None, 0.25]) == [(1, Interval(0.5)), (3, Interval(0.25))]


def test_bad_folder_and_bad_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="summary.json is not readable JSON"):
        write_report(tmp_path)


def test_a_repeated_metric_row_counts_once(tmp_path: Path) -> None:
    columns = {"arm": ["a"] * 3, "seed": [1, 1, 2], "update": [0] * 3, "name": ["reward"] * 3,
               "value": [9.0, 1.0, float("nan")]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "metrics.parquet")
    assert read_run(tmp_path).metrics == {"a": {"reward": {0: {1: 1.0}}}}


def test_text_table() -> None:
    lines = table(summary() | {"variants": variants()}).splitlines()
    assert [line.split()[0] for line in lines[2:11]] == list(builtin_styles())
    assert "0.50 [0.45, 0.55]" in lines[7] and "0.62" in lines[7] and "950" in lines[7]
    assert len({len(line) for line in lines[:11]}) == 1
    below = [" ".join(line.split()) for line in lines]
    assert "calibrated − interactive +0.16 [+0.11, +0.21] +0.11 [+0.06, +0.16]" in below
    assert "calibrated − static +0.01 [−0.04, +0.06] no difference shown +0.21 [+0.16, +0.26]" in below
    assert "classifier accuracy, words 0.93 [0.88, 0.98] 0.57 [0.52, 0.62]" in below
    assert "cooperative_050 cooperativeness=0.5 0.37 0.50 +0.13 [+0.08, +0.18] 0.61 → 0.52" in below
    assert below[-1] == "Note: demonstration"
    assert table({}) == "no arm was measured"


def test_numbers_as_people_write_them() -> None:
    assert (number(-0.001), number(-0.25), number(0.25, sign=True)) == ("0.00", "−0.25", "+0.25")
    assert [count(v) for v in (950, 12_300, 4_100_000, None)] == ["950", "12.3 k", "4.1 M", "not measured"]
    assert [duration(v) for v in (45, 192, 5400)] == ["45 s", "3.2 min", "1.5 h"]
    assert interval({"value": 1, "low": 0, "high": None}) == Interval(1.0, 0.0, None)
    assert Interval(1.0, 0.0, None).errors == (1.0, 0.0)
    assert interval(True) is None and interval(float("inf")) is None
    assert running_mean(np.array([0.0, 3.0, 6.0]), 1).tolist() == [1.5, 3.0, 4.5]


def test_metrics_by_turn_leave_the_panels_to_others() -> None:
    curve = {0: {0: 1.0}}
    metrics = {"calibrated": {f"calibration_mean_weight_turn_{turn}": curve for turn in range(1, 30)}}
    shown = optimisation.view(RunFiles(name="run", summary={}, metrics=metrics, samples=[], config={}))
    assert shown.plot is None and shown.without_panel == ["calibration_mean_weight_turn_1, 2, ..."]
    section = render(shown.template, view=shown)
    assert "not measured" in section and "<img" not in section


def test_with_one_seed_it_says_that_intervals_are_over_scenarios_alone() -> None:
    assert "over scenarios alone" in table(summary() | {"seeds": [0]})
    assert "over training seeds and scenarios" in table(summary() | {"seeds": [0, 1]})
    assert over_what({}) == ""
