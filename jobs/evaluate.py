"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl evaluate``."""

from calibrated_rl.cli.command import run
from calibrated_rl.cli.evaluate import main

if __name__ == "__main__":
    run(main)
