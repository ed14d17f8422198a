"""``calibrated-rl``: the jobs as subcommands."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from calibrated_rl.cli import command

COMMANDS = {
    "compare": "train the arms of a config side by side and compare them on held-out users",
    "train": "train one arm and evaluate it",
    "calibrate": "align the simulator alone, and measure it before and after",
    "evaluate": "evaluate the policies of a run again",
    "ask": "pick the histories on which a human's reply would help the simulator most",
    "chat": "talk with a trained policy, or let a simulator talk with it",
    "serve": "put a policy and a simulator behind OpenAI-compatible endpoints, with a chat page",
    "measure-shift": "how far two sets of dialogues, or a simulator and humans, are apart",
    "judge": "check a judge against people's ratings",
    "logs": "check and convert logs of human dialogues",
    "curves": "draw learning curves of several runs",
    "audit": "check that a run has lost and repeated nothing",
}
"""Commands with their purpose; the module has the name with ``_``."""


def parser() -> argparse.ArgumentParser:
    """Parses the subcommand; its own parser parses the rest."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    command_parser = argparse.ArgumentParser(
        prog="calibrated-rl", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Calibrated interactive reinforcement learning of dialogue policies.",
        epilog=f"commands:\n{listed}\n\ncalibrated-rl COMMAND --help explains one of them.",
    )  # fmt: skip
    command_parser.add_argument("--version", action="version", version=f"calibrated-rl {version('calibrated-rl')}")
    command_parser.add_argument("command", metavar="COMMAND", choices=tuple(COMMANDS), help="one of those below")
    command_parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments"
    )
    return command_parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the subcommand that ``arguments`` (default: those of the process) name, and exit with its code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(argv[:1])
    sys.argv = [f"calibrated-rl {options.command}", *argv[1:]]
    command.run(importlib.import_module(f"calibrated_rl.cli.{options.command.replace('-', '_')}").main)
