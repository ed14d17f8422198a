"""The memory that a model takes on GPUs, from its shape: nothing is loaded, measured or started.

    python jobs/plan.py --shape 70b --gpus 64 --gpu-memory 80
    python jobs/plan.py --shape my/config.json policy.engine.max_model_len=8192 learner.micro_batch_tokens=16384

Settings of a run (key=value) that matter: learner.dtype, learner.micro_batch_tokens, learner.gradient_checkpointing,
policy.engine.dtype, policy.engine.max_model_len. Defaults here are bfloat16 and checkpointing.
"""

import tempfile
from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Positive

DEFAULTS = (
    "learner.dtype=bfloat16", "learner.gradient_checkpointing=true", "policy.engine.dtype=bfloat16",
    "policy.engine.max_model_len=4096", "arms=[start, interactive]",
)  # fmt: skip


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument("--shape", required=True, metavar="{7b,70b,FILE}", help="a shape by name, or a config.json")
    parser.add_argument("--gpus", type=command.allowed(Positive), default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--gpu-memory", type=command.allowed(Positive), default=80, metavar="GIB", help="of each, in GiB (default: 80)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of a run")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.config.load import load_config
    from calibrated_rl.config.run_config import RunConfig
    from tools.plan.shape import GIB, describe, read_shape

    config = load_config(RunConfig(), [*DEFAULTS, *arguments.overrides], saved=True)
    with tempfile.TemporaryDirectory() as folder:
        model = read_shape(arguments.shape, Path(folder))
    console.result(describe(config, arguments.shape, model, arguments.gpus, arguments.gpu_memory * GIB))
    return 0
