"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl chat``."""

from calibrated_rl.cli.chat import main
from calibrated_rl.cli.command import run

if __name__ == "__main__":
    run(main)
