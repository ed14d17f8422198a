"""Talk to a trained policy in the terminal, or listen to it talking to a simulator or to the scripted human.

    python jobs/chat.py runs/dev [--policy calibrated-0] [--with me|simulator|human] [--scenario 3] [--seed 1]

You are the user: your goal and the policy's instructions are shown first. An empty line or Ctrl-D ends the
conversation; then its ending and its reward are printed. The lines may also come from a pipe. The same scenario,
seed and lines give the same conversation.
"""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Range, Seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calibrated_rl.data.dialogue import Turn
    from calibrated_rl.rollout.conversation import Speaker

logger = logging.getLogger(__name__)


MAX_SCENARIOS = 100_000
"""A limit, since a task makes all scenarios before the requested one."""


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. policy.sampling.temperature=0")
    parser.add_argument("--policy", default="", metavar="ARM-SEED", help="default: the run's calibrated policy")
    parser.add_argument(
        "--with", dest="other", choices=("me", "simulator", "human"), default="me",
        help="who talks to it: you (default), the run's calibrated simulator, or its scripted human",
    )  # fmt: skip
    parser.add_argument(
        "--scenario",
        type=command.allowed(Annotated[int, Range(at_least=0, at_most=MAX_SCENARIOS)]),
        default=0,
        metavar="N",
        help="held-out scenario, from 0 (default: 0)",
    )
    parser.add_argument(
        "--seed", type=command.allowed(Seed), default=0, metavar="S", help="of what models sample (default: 0)"
    )
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()

    from calibrated_rl.chat.tokens import ChatTokens
    from calibrated_rl.data.dialogue import Side, Split
    from calibrated_rl.inference.lockstep import LockstepScheduler
    from calibrated_rl.inference.pool import ReplicaPool
    from calibrated_rl.models.tokenizer import read_tokenizer
    from calibrated_rl.rollout.conversation import ModelSpeaker, ScriptedSpeaker, converse, greeting, stable_seed
    from calibrated_rl.rollout.failures import is_scored
    from calibrated_rl.run.machine import start_ray
    from calibrated_rl.run.memory import with_cache
    from calibrated_rl.run.saved_run import check_engines_fit, open_run
    from calibrated_rl.tasks.base import refuse_onlookers, secret_after
    from calibrated_rl.users.human import STOPPED, HumanUser

    run = open_run(arguments.run, arguments.overrides)
    policy, task = run.policy(arguments.policy), run.task()
    if arguments.other == "me":
        refuse_onlookers(task)
    scenario = task.scenarios(Split.HELD_OUT, arguments.scenario + 1)[arguments.scenario]
    models = [(Side.POLICY, policy.folder, with_cache(run.config.policy, policy.folder))]
    if arguments.other == "simulator":
        simulator = run.model("calibrated")
        models.append((Side.USER, simulator, with_cache(run.config.simulator, simulator)))
    human = run.human(task) if arguments.other == "human" else None
    chats = [
        ChatTokens(
            read_tokenizer(folder, folder.name), "policy" if side is Side.POLICY else "simulator",
            settings=config.chat_template_kwargs, date=run.config.date, secret_after=secret_after(task),
        )
        for side, folder, config in models
    ]  # fmt: skip
    check_engines_fit({side.value: (config.engine, folder) for side, folder, config in models})

    start_ray()
    logger.info(f"starting {'one vLLM engine' if len(models) == 1 else 'two vLLM engines'}")
    lockstep = LockstepScheduler()
    pools = [
        ReplicaPool(side.value, str(folder.resolve()), chat, config.engine, lockstep=lockstep)
        for (side, folder, config), chat in zip(models, chats, strict=True)
    ]
    try:
        for pool in pools:
            pool.wait_until_ready()
        speakers: list[Speaker] = [
            Aloud(ModelSpeaker(pool, scenario, side, config.sampling, stable_seed(arguments.seed, side), scenario.id))
            for pool, (side, _, config) in zip(pools, models, strict=True)
        ]
        terminal_user = HumanUser(ask)
        if len(speakers) == 1:
            speakers.append(terminal_user if human is None else Aloud(ScriptedSpeaker(human, scenario)))
        logger.info(f"policy {policy.name}, scenario {scenario.id}")
        console.result(f"The user's goal: {scenario.user_instructions}")
        console.result(f"The policy's instructions:  {scenario.policy_instructions}")
        if arguments.other == "me":
            console.result("You are the user. An empty line or Ctrl-D ends the conversation.")
        show(greeting(scenario))
        lockstep.running = 1  # one turn at a time is a batch of one, in which the seed decides the draw
        turns, ending = asyncio.run(converse(task, scenario, speakers[0], speakers[1]))
    finally:
        for pool in pools:
            pool.close()
    if terminal_user.stopped:
        ending = STOPPED
    if not is_scored(ending):
        console.result(f"ending: {ending}, through no fault of the policy: not scored")
        return
    outcome = task.outcome(scenario, turns, ending)
    console.result(f"ending: {ending}")
    whose = ", the task's own: the run's judge is not asked" if run.config.judge else ""
    console.result(f"reward: {outcome.episode_return:+.3f} ({'success' if outcome.success else 'no success'}){whose}")


class Aloud:
    """A speaker whose turns are printed."""

    def __init__(self, speaker: "Speaker") -> None:
        self.speaker = speaker

    def hear(self, turn: "Turn") -> None:
        self.speaker.hear(turn)

    async def say(self, turns: "Sequence[Turn]") -> "Turn | None":
        turn = await self.speaker.say(turns)
        if turn is not None:
            show(turn)
        return turn


def show(turn: "Turn") -> None:
    """Print a turn, with the guardrail that it tripped, if any. Further lines are indented, so that it cannot look
    like two turns, and control characters are escaped."""
    from calibrated_rl.errors import printable

    flaw = f"  [{turn.flaw}]" if turn.flaw else ""
    text = "\n        ".join(printable(line, None) for line in turn.text.split("\n"))
    console.result(f"{turn.side.value:>6}: {text}{flaw}")


def ask() -> str | None:
    """A line from the standard input; None for an empty line, its end, or Ctrl-C."""
    previous_handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait for the line
    try:
        line, on_screen = input("   you: ").strip(), sys.stdin.isatty()
    except (EOFError, KeyboardInterrupt):
        line, on_screen = "", False
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    if not on_screen:
        print(line, flush=True)
    return line or None
