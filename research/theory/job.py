"""Check the bounds and the estimators of shift where the truth is known: in a world of symbols.

    python jobs/validate_theory.py --out theory.json [--full] [--seed N] [--part all|intervals]

Writes the metrics to FILE and a plot beside it (same name, .png), and prints the main ones. Takes three to five
minutes on two idle cores; --full, with more constructions, repetitions and RLlib runs, much longer. Exit code 1: a
metric is not what it should be.

--part intervals: only how often the intervals over training seeds and scenarios contain the truth, in simulated studies
(research/theory/interval_coverage.py), without a plot; half a minute, with --full five.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Seed

if TYPE_CHECKING:
    from research.theory.theory import Point

# Before numpy is there: on arrays as small as these, the threads of its matrix library only wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done."""

    constructions: int
    """Of each random family, for gaps and bounds."""
    regret_constructions: int
    coverage: int
    """Repetitions of each two-sided estimator."""
    lower_bounds: int
    """Repetitions of each lower bound."""
    words: int
    """Repetitions of the two-sample test on words, on fewer dialogues each."""
    populations: int
    """Repetitions of each estimator that compares whole dialogues."""
    histories: int
    """Repetitions of the lower bound on the distance of histories."""
    dialogues: tuple[int, ...]
    """At which numbers of dialogues bias and width are reported."""
    curve: int
    """Repetitions at each number."""
    ppo_rewards: tuple[str, ...]
    studies: int
    """Simulated studies for each cell of the table of ``--part intervals``."""


FAST = Size(
    constructions=60, regret_constructions=20, coverage=240, lower_bounds=400, words=200,
    populations=201, histories=100,
    dialogues=(50, 100, 200, 400), curve=20, ppo_rewards=("per_turn",),
    studies=1000,
)  # fmt: skip
FULL = Size(
    constructions=300, regret_constructions=100, coverage=1200, lower_bounds=1200, words=800,
    populations=900, histories=400,
    dialogues=(50, 100, 200, 400, 800, 1600), curve=100, ppo_rewards=("per_turn", "terminal"),
    studies=8000,
)  # fmt: skip
WORDS_DIALOGUES = 80
PPO_HORIZON, PPO_SHIFT = 8, 0.1


def ppo(reward: Any, seed: int) -> dict[str, Any]:
    """RLlib's PPO in a simulator with a shift: what it learns, checked three ways.

    Returns:
        ``value`` with ``low`` and ``high``, from rollouts; ``exact``, the same by dynamic programming; ``regret`` in
        the simulator as a share of the optimum; ``uniform_regret``, that of saying anything; and with the human:
        ``human_value``, ``gap`` to the simulator's and its ``bound``, the human's ``human_optimum``.
    """
    import numpy as np

    from calibrated_rl.shift.bounds import per_turn_reward_bound, terminal_reward_bound
    from calibrated_rl.statistics.intervals import mean_interval
    from research.theory.symbolic import optimal_policy, simulator_shift, stationary, value
    from research.theory.symbolic_env import PPOSettings, train
    from research.theory.symbolic_worlds import random_construction

    rng = np.random.default_rng((seed, 4))
    construction = random_construction("persistent", rng, horizon=PPO_HORIZON, epsilon=PPO_SHIFT, delta=PPO_SHIFT)
    world = construction.world
    trained = train(world, construction.simulator, reward, PPOSettings(seed=seed))
    exact = value(world, trained.policy, construction.simulator, reward)
    optimum = value(world, optimal_policy(world, construction.simulator, reward), construction.simulator, reward)
    anything = np.full((world.states, world.policy_symbols), 1 / world.policy_symbols)
    uniform = value(world, stationary(anything, PPO_HORIZON), construction.simulator, reward)
    human_value = value(world, trained.policy, construction.human, reward)
    delta = simulator_shift(world, trained.policy, construction.human, construction.simulator).tolist()
    bound = per_turn_reward_bound if reward == "per_turn" else terminal_reward_bound
    rollouts = mean_interval(trained.returns, seed)
    return {
        "value": rollouts.mean,
        "low": rollouts.low,
        "high": rollouts.high,
        "exact": exact,
        "regret": 1 - exact / optimum,
        "uniform_regret": 1 - uniform / optimum,
        "human_value": human_value,
        "human_optimum": value(world, optimal_policy(world, construction.human, reward), construction.human, reward),
        "gap": abs(exact - human_value),
        "bound": bound(world.reward_range, delta=delta),
        "training_returns": list(trained.mean_returns),
    }


def measure(size: Size, seed: int) -> "tuple[dict[str, Any], dict[str, dict[float, list[Point]]]]":
    """Everything but PPO: the result, and the points behind its gaps."""
    from research.theory import theory, theory_coverage, theory_populations

    points = theory.all_points(size.constructions, seed)
    by_family = {
        family: {
            training: {
                reward: theory.growth(theory.gaps(points[family][theory.SMALL_SHIFT], training, reward), seed)
                for reward in theory.REWARDS
            }
            for training in theory.TRAININGS
        }
        for family in theory.FAMILIES
    }
    main = by_family["persistent"]["interactive"]
    covered = theory_coverage.coverage(size.coverage, seed) | theory_populations.coverage(size.populations, seed)
    plug_ins = {name: row for name, row in covered.items() if name.endswith("plug_in")}
    two_sided = {name: row for name, row in covered.items() if name not in plug_ins}
    below = theory_coverage.lower_bounds(size.lower_bounds, seed)
    below |= theory_coverage.lower_bounds(size.words, seed, WORDS_DIALOGUES, theory_coverage.text_estimates)
    below |= theory_populations.lower_bounds(size.histories, seed)
    result = {
        "growth": {f"{reward}_reward": main[reward] for reward in theory.REWARDS},
        "growth_by_family": by_family,
        "saturation": theory.saturation(points["persistent"]),
        "bound": theory.bound_check(points),
        "remedies": theory.remedies(size.constructions, seed),
        "regret": theory.regrets(size.regret_constructions, seed),
        "coverage": {name: row["share"] for name, row in two_sided.items()},
        "coverage_details": two_sided,
        "plug_ins": plug_ins,
        "lower_bounds": {name: row["share"] for name, row in below.items()},
        "lower_bound_details": below,
        "by_dialogues": theory_coverage.by_dialogues(size.dialogues, size.curve, seed),
    }
    return result, points


def table(result: Mapping[str, Any]) -> str:
    """The main metrics, a line each, with what they should be."""
    from research.theory.theory_coverage import GOAL_LOWER, GOAL_TWO_SIDED, reaches

    def goal(reached: bool) -> str:
        return "ok" if reached else "MISSED"

    def shares(row: Mapping[str, Any]) -> str:
        return f"{row['share']:6.1%} (at the worst size of shift {min(row['by_shift'].values()):.1%})"

    lines = []
    for kind, row in result["growth"].items():
        fitted = f"gap = {row['a']:.2e} H² + {row['b']:.2e} H"
        lines.append(f"growth, {kind:<16} {fitted}, slope {row['slope']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
    bound, regret = result["bound"], result["regret"]
    lines.append(
        f"bound: {bound['violations']} violations on {bound['points']} points, tightest ratio "
        f"{bound['tightest_ratio']:.4f} {goal(not bound['violations'])}"
    )
    lines.append(
        f"regret of training's optimum against two bounds: {regret['violations']} violations on {regret['points']} "
        f"points {goal(not regret['violations'])}"
    )
    for name, row in result["coverage_details"].items():
        lines.append(f"coverage     {name:<28} {shares(row)} {goal(reaches(row, GOAL_TWO_SIDED))}")
    for name, row in result["plug_ins"].items():
        lines.append(f"             {name:<28} {row['share']:6.1%} (for contrast)")
    for name, row in result["lower_bound_details"].items():
        lines.append(f"lower bounds {name:<28} {shares(row)} {goal(reaches(row, GOAL_LOWER))}")
    for reward, row in result["ppo_by_reward"].items():
        agrees = row["low"] <= row["exact"] <= row["high"]
        lines.append(
            f"PPO, {reward}: rollouts {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], exact "
            f"{row['exact']:.3f} {goal(agrees)}; regret {row['regret']:.2%} {goal(row['regret'] <= 0.02)} "
            f"(saying anything: {row['uniform_regret']:.0%})"
        )
        lines.append(
            f"     with the human {row['human_value']:.3f}: gap {row['gap']:.3f}, bound {row['bound']:.3f} "
            f"{goal(row['gap'] <= row['bound'])}"
        )
    return "\n".join(lines)


def intervals(file: Path, size: Size, seed: int) -> int:
    """Write and print the coverage of intervals over seeds and scenarios; 1 where one is not within its goal."""
    from calibrated_rl.storage.files import write_json
    from research.theory import interval_coverage

    rows = interval_coverage.table(size.studies, seed)
    missed = interval_coverage.misses(rows)
    write_json(file, {"studies": size.studies, "seed": seed, "goal": interval_coverage.GOAL, "rows": rows})
    console.result(interval_coverage.as_text(rows))
    for row in missed:
        console.result(f"MISSED: {row}")
    console.result(f"metrics: {file.resolve()}")
    return 1 if missed else 0


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--out", type=command.result_file(".json"), required=True, metavar="FILE",
        help="JSON file to write; the plot goes beside it",
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="also what does not fit in five minutes")
    parser.add_argument(
        "--seed", type=command.allowed(Seed), default=0, help="the same seed gives the same metrics (default: 0)"
    )
    parser.add_argument(
        "--part", choices=("all", "intervals"), default="all",
        help="intervals: only the coverage of those over seeds and scenarios (default: all the rest)",
    )  # fmt: skip
    arguments = parser.parse_args()

    from calibrated_rl.run.machine import start_ray
    from calibrated_rl.storage.files import write_json
    from research.theory.theory_plot import draw

    file = arguments.out
    size = FULL if arguments.full else FAST
    if arguments.part == "intervals":
        return intervals(file, size, arguments.seed)
    started, cpu_started = time.monotonic(), time.process_time()
    start_ray()  # first, so that a machine on which it does not start says so at once
    by_reward = {reward: ppo(reward, arguments.seed) for reward in size.ppo_rewards}
    result, points = measure(size, arguments.seed)
    result |= {"ppo": by_reward["per_turn"], "ppo_by_reward": by_reward, "full": arguments.full, "seed": arguments.seed}
    result["seconds"] = {"wall": time.monotonic() - started, "cpu": time.process_time() - cpu_started}
    write_json(file, result)
    plot = file.with_suffix(".png")
    draw(plot, result, points)
    printed = table(result)
    console.result(printed)
    console.result(f"metrics: {file.resolve()}\nplot: {plot.resolve()}")
    return 1 if "MISSED" in printed else 0
