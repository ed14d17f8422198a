"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl ask``."""

from calibrated_rl.cli.ask import main
from calibrated_rl.cli.command import run

if __name__ == "__main__":
    run(main)
