"""Formulas of the estimators on text: values by hand, against other implementations, and properties."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp, wasserstein_distance

from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.estimators.act_divergence import jackknife_bias, jensen_shannon
from calibrated_rl.shift.estimators.coverage import Coverage, nearest
from calibrated_rl.shift.estimators.lengths import Lengths, errors, wasserstein
from calibrated_rl.shift.estimators.mauve import frontier_area
from calibrated_rl.shift.estimators.similarity import kolmogorov_smirnov
from calibrated_rl.shift.interface import DialogueSets, bootstrap, halve
from calibrated_rl.shift.probabilities.ending import EndingDecision, Endings, calibration_curve, calibration_error
from calibrated_rl.shift.probabilities.policy_shift import PolicyLogProbs, PolicyShift, mirrored
from calibrated_rl.shift.shares import shares
from calibrated_rl.shift.traits import TRAITS, goal_terms, traits_of
from calibrated_rl.shift.transfer import OutcomeTransfer, PolicyOutcomes, kendall, spearman
from calibrated_rl.shift.two_sample.test import balanced
from calibrated_rl.shift.verdict import verdict
from tests.support.made_up_logs import dialogue, policy, population, terse, user

counts = st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any)


PACKAGE_VALUES = (
    ([4, 3, 2, 1], [1, 2, 3, 4], 0.6540214698050157),
    ([5, 5, 0, 0], [0, 5, 5, 0], 0.09206953203443677),
    ([10, 0, 1, 9], [9, 1, 0, 10], 0.922428289696056),
    ([1, 1, 1, 97], [97, 1, 1, 1], 0.007737077716651613),
)
"""Counts of four clusters on either side, and what mauve-text 0.4.0 (its scaling 5, 101 mixtures from 0 to 1) makes of
them."""


def share(of: list[int]) -> np.ndarray:
    return np.array([of], np.float64) / sum(of)


# --- divergences -----------------------------------------------------------------------------------------------


def test_mauve_of_clusters_by_the_package_and_by_hand() -> None:
    for p, q, expected in PACKAGE_VALUES:
        assert frontier_area(share(p), share(q))[0] == pytest.approx(expected, abs=1e-9)
    # Nothing in common: the curve is (1 - l)^5 and l^5, with area 5 B(6, 5) = 1/252.
    apart = frontier_area(share([1, 0]), share([0, 1]), points=2001)[0]
    assert apart == pytest.approx(1 / 252, rel=1e-4)


def plain_mauve(p: np.ndarray, q: np.ndarray, scaling: float = 5.0) -> float:
    """The definition, mixture by mixture and cluster by cluster, point by point."""

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        if (b[a > 0] == 0).any():
            return math.inf
        return max(0.0, sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0))

    points = [(1.0, 0.0)]
    for weight in np.linspace(0, 1, 101):
        r = weight * p + (1 - weight) * q
        points.append((math.exp(-scaling * kl(q, r)), math.exp(-scaling * kl(p, r))))
    points.append((0.0, 1.0))
    return sum((x0 - x1) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False))


@settings(max_examples=30, deadline=None)
@given(counts, counts)
def test_mauve_is_its_definition_symmetric_and_one_for_equal_shares(a: list[int], b: list[int]) -> None:
    p, q = share(a), share(b)
    assert frontier_area(p, q)[0] == pytest.approx(plain_mauve(p[0], q[0]), abs=1e-9)
    assert frontier_area(p, q)[0] == pytest.approx(frontier_area(q, p)[0], abs=1e-9)
    assert 0 <= frontier_area(p, q)[0] <= 1 + 1e-12
    assert frontier_area(p, p)[0] == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(counts, counts)
def test_wasserstein_and_jensen_shannon_agree_with_scipy(a: list[int], b: list[int]) -> None:
    p, q, support = share(a), share(b), np.array([1, 2, 5, 9])
    assert wasserstein(p, q, support)[0] == pytest.approx(wasserstein_distance(support, support, p[0], q[0]))
    assert jensen_shannon(p, q)[0] == pytest.approx(float(jensenshannon(p[0], q[0], base=2)) ** 2, abs=1e-9)


def test_divergences_by_hand() -> None:
    # Half of the turns have 1 word and half 3; on the other side all have 2: each is one word off.
    assert wasserstein(share([1, 0, 1]), share([0, 1, 0]), np.array([1, 2, 3]))[0] == pytest.approx(1.0)
    # H(3/4, 1/4) - (0 + 1) / 2 = 0.811278 - 0.5.
    assert jensen_shannon(share([1, 0]), share([1, 1]))[0] == pytest.approx(0.311278, abs=1e-6)
    people = [dialogue("a", user("one two"), policy("?"), user("one")), dialogue("b", user("one two three"))]
    others = [dialogue("c", user("one two three"), policy("?"), user("one two")), dialogue("d", policy("hello"))]
    found = Lengths(Lengths.Config(null_halvings=0)).measure(DialogueSets(human=people, simulator=others))
    # Words 1, 2, 3 against 2, 3: F - G is 1/3 at 1 and 2/3 - 1/2 at 2. User turns 2, 1 against 2, 0. That is before the
    # correction, which takes off what two people a side give by chance.
    for name, plain in (("wasserstein_turn_words", 1 / 3 + 1 / 6), ("wasserstein_user_turns", 0.5)):
        assert found[name].value < plain and f"for its bias {plain:.3f}" in found[name].notes[0]


def test_errors_of_a_distribution_function_by_hand() -> None:
    # Two people; numbers 0, 1, 2. One says 0 and 0, the other 0 and 2: F is 3/4, 3/4. Residuals 2 - 2 * 3/4 and
    # 1 - 2 * 3/4 over 4 things: +- 1/8, whose sum has the standard error sqrt(2 * (1/64 + 1/64)) = 1/4.
    counts = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1]], float)
    np.testing.assert_allclose(errors(counts, np.array([0, 0, 1])), [0.25, 0.25])
    assert errors(counts, np.array([0, 0, 0])).tolist() == [0, 0], "nothing is known of a single person's error"


def test_the_correction_takes_most_of_the_bias_of_wasserstein_away() -> None:
    rng, truth = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    plain, corrected, people, support = [], [], np.arange(60), np.arange(4)
    for _ in range(200):
        sides = [rng.multinomial(1, truth, size=60).astype(float) for _ in range(2)]
        p, q = (side.mean(axis=0, keepdims=True) for side in sides)
        error = np.hypot(*(errors(side, people) for side in sides))
        plain.append(wasserstein(p, q, support)[0])
        corrected.append(wasserstein(p, q, support, error)[0])
    # Sides that are the same, where it is largest: there no correction can take all of it without a larger error.
    assert np.mean(plain) > 0.15 and abs(np.mean(corrected)) < 0.45 * np.mean(plain)


def test_the_jackknife_takes_most_of_the_bias_away() -> None:
    rng, truth = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    plain, corrected = [], []
    for _ in range(60):
        tables = [rng.multinomial(1, truth, size=60).astype(float) for _ in range(2)]

        def statistic(a: np.ndarray, b: np.ndarray, tables: list[np.ndarray] = tables) -> np.ndarray:
            return jensen_shannon(shares(a, tables[0]), shares(b, tables[1]))[:, None]

        whole, bias = jackknife_bias(statistic, np.arange(60), np.arange(60))
        plain.append(whole[0])
        corrected.append((whole - bias)[0])
    assert np.mean(plain) > 0.01
    assert abs(np.mean(corrected)) < 0.25 * np.mean(plain)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy's p-value, which is not used
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_kolmogorov_smirnov_agrees_with_scipy(a: list[int], b: list[int]) -> None:
    left, right = np.array([*a, math.nan]), np.array([math.nan, *b])
    ones = np.ones((2, len(left))), np.ones((2, len(right)))
    assert kolmogorov_smirnov(left, right, *ones) == pytest.approx([ks_2samp(a, b, method="asymp").statistic] * 2)
    assert np.isnan(kolmogorov_smirnov(left[-1:], right, np.ones((1, 1)), ones[1][:1]))


# --- profiles --------------------------------------------------------------------------------------------------


def test_traits_by_hand() -> None:
    turns = [
        policy("Hello!"),
        user("I want a table, please."),
        policy("Which day?"),
        user("friday friday"),
        policy("Sorry, I did not understand."),
        user("no, i said friday"),
        policy("Fine."),
        user("Maybe at seven?"),
    ]
    goal = {"day": "friday", "seven": 7, "vip": True, "name": " "}
    found = traits_of(dialogue("a", *turns, goal=goal), None, by_goal=True)
    assert set(found) == set(TRAITS) and goal_terms(goal) == {"friday", "seven"}
    expected = {
        "turn_words": (5 + 2 + 4 + 3) / 4,
        "short_turns": 2 / 4,
        "polite_turns": 1 / 4,
        "repeated_words": 2 / 9,  # "i" and "friday" of the third turn, among the 9 words after the first
        # Slips: none; no capital and no mark; no capital, no mark, a small "i"; none.
        "typing_noise": (0 + 2 + 3 + 0) / 20,
        "first_disclosure": 0.0,
        "disclosure_a_turn": 2 / 4,
        "last_disclosure": 0.0,
        "question_turns": 1 / 4,
        "pushback_turns": 1 / 4,
        "uncertain_turns": 1 / 4,
        "objects_after_error": 1.0,
        "rephrases_after_error": 1.0,  # all words of "friday friday" again
        "words_after_error": math.log((1 + 4) / (1 + (5 + 2 + 3) / 3)),
    }
    assert found == pytest.approx(expected)
    silent = traits_of(dialogue("b", policy("Hello!")), None, by_goal=False)
    assert all(math.isnan(value) for value in silent.values())
    # Acts count like words, however a turn was typed.
    nodded = dialogue("c", policy("Six?"), user("hm"))
    assert traits_of(nodded, [(), ("deny:time",)], by_goal=False)["pushback_turns"] == 1


def test_nearest_and_coverage_tell_one_voice_from_noise() -> None:
    distance = np.array([[1.0, 5.0], [3.0, 2.0]])
    ones, first = np.ones((1, 2)), np.array([[1.0, 0.0]])
    assert nearest(distance, ones, ones) == pytest.approx([1.5])
    assert nearest(distance, ones, first) == pytest.approx([2.0])
    people = population(terse, 60, 0)
    one_voice = [dialogue(f"v{i}", *people[0].turns) for i in range(60)]
    measure = Coverage(Coverage.Config(null_halvings=0)).measure
    voice = measure(DialogueSets(human=people, simulator=one_voice))
    alike = measure(DialogueSets(human=people, simulator=population(terse, 60, 1, "q")))
    assert voice["coverage"].high < 0.85 < alike["coverage"].low < 1 < alike["coverage"].high
    assert voice["humanness"].value > voice["coverage"].value + 0.3
    assert alike["humanness"].low < 1 < alike["humanness"].high + 0.1


# --- the decision to end, and outcomes ---------------------------------------------------------------------------


def test_ending_by_hand() -> None:
    endings = Endings(
        probability=[0.1, 0.9, 0.2, 0.7], ended=[False, True, True, False], turn=[1, 2, 1, 2], dialogue=list("aabb")
    )
    found = EndingDecision().measure(endings)
    assert found["ending_f1"].value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["ending_ece"].value == pytest.approx((0.1 + 0.1 + 0.8 + 0.7) / 4)
    assert found["ending_bias"].value == pytest.approx((1.9 - 2) / 4)
    of_draws = EndingDecision().measure(replace(endings, draws=4))["ending_ece"]
    assert of_draws.value == found["ending_ece"].value and of_draws.null_low is None and "4 draws" in of_draws.notes[-1]
    curve = calibration_curve([0.1, 0.9, 0.2, 0.7], [0, 1, 1, 0], bins=2)
    assert [(b.count, b.probability, b.outcome) for b in curve] == [
        (2, pytest.approx(0.15), 0.5), (2, pytest.approx(0.8), 0.5)
    ]  # fmt: skip
    nobody = EndingDecision().measure(Endings(probability=[0.0], ended=[False], turn=[1], dialogue=["a"]))
    assert math.isnan(nobody["ending_f1"].value) and "undefined" in nobody["ending_f1"].notes[0]
    with pytest.raises(UserError, match="nothing to measure"):
        EndingDecision().measure(Endings(probability=[], ended=[], turn=[], dialogue=[]))
    with pytest.raises(ValueError, match="0 .. 1"):
        calibration_curve([1.5], [1])


def test_right_probabilities_lie_within_the_null_band_of_the_calibration_error() -> None:
    rng, inside = np.random.default_rng(0), 0
    for seed in range(20):
        p = rng.random(200)
        right = calibration_error("e", p, rng.random(200) < p, [str(i) for i in range(200)], seed=seed)
        inside += right.null_low <= right.value <= right.null_high  # type: ignore[operator]
        wrong = calibration_error("e", p, rng.random(200) < p**4, [str(i) for i in range(200)], seed=seed)
        assert verdict(wrong) == "apart"
    assert inside >= 17


def outcomes(name: str, simulator: dict[str, float], human: dict[str, float]) -> PolicyOutcomes:
    return PolicyOutcomes(
        policy=name, simulator_reward=simulator, human_reward=human, simulator_success=simulator, human_success=human
    )


def test_outcome_transfer_by_hand() -> None:
    a = outcomes("a", {"x": 0.5, "y": 1.0}, {"x": 0.0, "y": 1.0, "z": 0.0})
    b = outcomes("b", {"x": 1.0}, {"x": 0.0})
    found = OutcomeTransfer().measure([a, b])
    assert found["exploitation:a"].value == pytest.approx(0.25)
    assert found["exploitation:b"].value == pytest.approx(1.0)
    assert found["exploitation"].value == pytest.approx(0.625)
    # Bins of 0.5 (outcome 0) and of 1.0 (outcomes 1 and 0): 1/3 * 0.5 + 2/3 * 0.5.
    assert found["success_ece"].value == pytest.approx(0.5)
    # Means 0.75 and 1.0 with the simulator, 0.5 and 0.0 with people: turned round. Two policies prove nothing.
    assert found["rank_spearman"].value == found["rank_kendall"].value == -1
    assert (found["rank_spearman"].low, found["rank_spearman"].high) == (-1, 1)
    apart = outcomes("c", {"x": 1}, {"y": 1})
    for bad, message in (([], "no policy"), ([a, a], "same name"), ([apart], "no scenario")):
        with pytest.raises(UserError, match=message):
            OutcomeTransfer().measure(bad)
    assert math.isnan(OutcomeTransfer().measure([b])["rank_kendall"].value)
    assert spearman(np.array([1.0, 2, 3, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert kendall(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(1 / 3)


@pytest.mark.slow
def test_the_noise_of_scenarios_counts_once_in_an_interval_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies with the same mean rewards, from even scores and from uneven ones: that is in the means already."""
    monkeypatch.setattr("calibrated_rl.shift.transfer.RESAMPLES", 200)
    rng = np.random.default_rng(3)
    means = rng.normal(size=(2, 8))
    noise = rng.normal(0, 5, size=(2, 8, 20))
    noise -= noise.mean(axis=2, keepdims=True)
    found = []
    for spread in (0.0, 1.0):
        scores = means[:, :, None] + spread * noise
        sides = [[{str(k): float(v) for k, v in enumerate(of)} for of in side] for side in scores]
        policies = [replace(outcomes(str(i), {}, {}), simulator_reward=a, human_reward=b, simulator_success=a,
                            human_success=b) for i, (a, b) in enumerate(zip(*sides, strict=True))]  # fmt: skip
        found.append(OutcomeTransfer()._ranks(policies, {p.policy: p.common() for p in policies})["rank_spearman"])
    assert (found[0].low, found[0].high) == pytest.approx((found[1].low, found[1].high))


@pytest.mark.slow
def test_policy_shift_from_the_policys_own_turns() -> None:
    """The mean over draws of either policy is the total variation between the two; with a third one's it is not."""
    rng = np.random.default_rng(0)
    policy, clone = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    said = rng.choice(2, size=4000, p=policy)
    names = [str(i) for i in range(len(said))]
    found = {}
    for drawn_from in ("policy", "logged"):
        found[drawn_from] = PolicyShift().measure(
            PolicyLogProbs(
                logged=np.log(clone[said]).tolist(), policy=np.log(policy[said]).tolist(), turn=[1] * len(said),
                dialogue=names, drawn_from=drawn_from,
            )
        )  # fmt: skip
    assert found["policy"]["policy_tv"].value == pytest.approx(0.4, abs=0.02)
    kl = float((policy * np.log(policy / clone)).sum())
    assert found["policy"]["policy_kl"].value == pytest.approx(kl, abs=0.05)
    assert found["logged"]["policy_tv"].value == pytest.approx(0.22, abs=0.02)  # what the wrong claim would give


def test_policy_shift_by_hand() -> None:
    # Logged (1/2, 1/2), policy (3/4, 1/4): TV = 1/4, KL = 0.143841.
    data = PolicyLogProbs(
        logged=np.log([0.5, 0.5]).tolist(), policy=np.log([0.75, 0.25]).tolist(), turn=[1, 1], dialogue=["a", "b"]
    )
    found = PolicyShift().measure(data)
    assert found["policy_tv"].value == pytest.approx(0.25)
    assert found["policy_kl"].value == pytest.approx(0.143841, abs=1e-6)
    with pytest.raises(UserError, match="no logged policy turns"):
        PolicyShift().measure(PolicyLogProbs(logged=[], policy=[], turn=[], dialogue=[]))
    seats = mirrored(
        MatchedReplies(histories=[[policy("hi"), user("yes")]], human=["a"], simulator=["b"], turn=[1], dialogue=["d"])
    )
    assert [turn.side for turn in seats.histories[0]] == [Side.USER, Side.POLICY]


# --- chance ------------------------------------------------------------------------------------------------------


def test_the_bootstrap_covers_a_mean_and_knows_when_it_cannot() -> None:
    hits = 0
    for seed in range(60):
        values = np.random.default_rng(seed).exponential(size=30)
        found = bootstrap(lambda a, v=values: (a @ v / a.sum(axis=1))[:, None], [np.arange(30)], seed)
        assert found.value[0] == pytest.approx(values.mean())
        hits += found.low[0] <= 1 <= found.high[0]
    assert hits >= 52
    alone = bootstrap(lambda a: a @ np.ones((2, 1)) / 2, [np.zeros(2, np.int64)], 0)
    assert alone.value[0] == 1 and math.isnan(alone.low[0]) and math.isnan(alone.high[0])


@given(st.integers(0, 9), st.integers(0, 9))
def test_halves_keep_people_together_and_the_second_is_no_larger_than_the_other_side(people: int, others: int) -> None:
    made = [dialogue(f"p{i}", user(str(k))) for i in range(people) for k in range(2)]
    first, second = halve(made, others, np.random.default_rng(0))
    names = [{d.scenario.id for d in half} for half in (first, second)]
    assert not names[0] & names[1] and len(first) + len(second) == len(made)
    assert len(names[1]) == min(people // 2, others)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=30))
def test_balanced_rows_have_as_many_of_either_label_at_each_turn(rows: list[tuple[int, int]]) -> None:
    label, turn = (np.array(part) for part in zip(*rows, strict=True))
    kept = balanced(label, turn, 0)
    for value in (1, 2, 3):
        sizes = [int(((turn == value) & (label == side)).sum()) for side in (0, 1)]
        assert [int((kept & (turn == value) & (label == side)).sum()) for side in (0, 1)] == [min(sizes)] * 2


def test_reading() -> None:
    def figure(low: float, value: float, high: float, **more: object) -> Estimate:
        band = {"null_low": 0.4, "null_high": 0.6} | more
        return Estimate(name="x", value=value, low=low, high=high, **band)  # type: ignore[arg-type]

    assert verdict(figure(0.45, 0.5, 0.9)) == "within the null band"
    assert verdict(figure(0.55, 0.7, 0.9)) == "unclear"
    assert verdict(figure(0.65, 0.7, 0.9)) == verdict(figure(0.1, 0.2, 0.3)) == "apart"
    assert verdict(figure(0.6 + 1e-15, 0.6 + 1e-15, 0.6 + 1e-15)) == "within the null band"
    # A similarity above its band is nearer than chance, which is no distance.
    assert verdict(figure(0.65, 0.7, 0.9, far="below")) == "within the null band"
    assert verdict(figure(0.1, 0.2, 0.3, far="below")) == "apart"
    assert verdict(figure(0.1, 0.2, 0.3, null_low=None)) == "no null band"
    assert verdict(figure(0.1, math.nan, 0.3)) == "undefined"
