"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl judge``."""

from calibrated_rl.cli.command import run
from calibrated_rl.cli.judge import main

if __name__ == "__main__":
    run(main)
