"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl serve``."""

from calibrated_rl.cli.command import run
from calibrated_rl.cli.serve import main

if __name__ == "__main__":
    run(main)
