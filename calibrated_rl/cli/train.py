"""Train one arm of a config and evaluate it on held-out users.

    python jobs/train.py configs/dev.yaml --arm calibrated [key=value ...]

Writes runs/NAME/ like jobs/compare.py; the policy lies in runs/NAME/policies/ARM-SEED in Hugging Face format.
"""

from calibrated_rl.cli import command
from calibrated_rl.cli.compare import parser_of, show
from calibrated_rl.config.sections import ArmName


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument(
        "--arm",
        type=command.allowed(ArmName),
        default="calibrated",
        help="start, static, interactive, calibrated_once, ...",
    )
    arguments = parser.parse_intermixed_args()
    if (code := command.supervise(arguments.supervise)) is not None:
        return code
    from calibrated_rl.api.runs import train

    show(train(arguments.config, arguments.arm, arguments.overrides, runs=arguments.runs, hardware=arguments.hardware))
    return 0
