"""The Slurm script: directives that sbatch reads, and what it does with stand-ins for Slurm's commands."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.cluster_files import CLUSTER, ROOT, demand, hardware, text_of

SLURM_OPTIONS = {
    "job-name", "nodes", "exclusive", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "output",
}  # fmt: skip


def wrong_directives(script: str) -> list[str]:
    """#SBATCH lines that sbatch would not read: malformed, not known, or after the first command."""
    lines, wrong, begun = script.splitlines(), [], False
    for line in lines:
        directive = re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)
        if line.startswith("#SBATCH"):
            known = directive is not None and directive[1] in SLURM_OPTIONS
            wrong += [line] if begun or not known else []
        begun = begun or bool(line and not line.startswith("#"))
    return wrong


def test_slurm_directives() -> None:
    script = text_of("slurm.sh")
    assert script.startswith("#!/usr/bin/env bash\n") and wrong_directives(script) == []
    assert len(re.findall(r"^#SBATCH", script, re.M)) == len(SLURM_OPTIONS)
    values = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, re.M))
    # Slurm gives no further machine on demand: what runs at the start finds its place, and a further replica may.
    at_start = hardware("policy.scaling.maximum=2", "simulator.scaling.maximum=2")
    needed = sum(resources["GPU"] for resources, _ in demand(at_start))
    assert int(values["nodes"]) * int(values["gpus-per-node"]) >= needed and values["ntasks-per-node"] == "1"
    for wrong in ("#SBATCH --node=2", "#SBATCH -- nodes=2", "#SBATCH --mem = 2G"):
        assert wrong_directives(script.replace("#SBATCH --nodes=2", wrong)) == [wrong]
    assert wrong_directives(script + "#SBATCH --nodes=2\n") == ["#SBATCH --nodes=2"]


@pytest.mark.slow
def test_slurm_script_runs_with_stand_ins(tmp_path: Path) -> None:
    """It asks for the token first, and gives every machine the command that starts Ray and the job."""
    for name, body in (("scontrol", "printf 'n1\\nn2\\n'"), ("srun", 'printf "%s\\n" "$RAY_AUTH_MODE" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_SUBMIT_DIR": str(ROOT)}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(CLUSTER / "slurm.sh"), "configs/dev.yaml", "training.updates=3"]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60)

    refused = run()
    assert refused.returncode == 2 and "There is no token" in refused.stderr and not refused.stdout
    (tmp_path / "token").write_text("made up")
    done = run(RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert done.returncode == 0, done.stderr
    mode, *words = done.stdout.splitlines()
    assert mode == "token" and "made up" not in done.stdout
    assert words[words.index("--address") + 1] == "n1:6379" and words[words.index("--min-nodes") + 1] == "2"
    assert words[-6:] == ["configs/dev.yaml", "--hardware", "cluster", "--runs", "runs", "training.updates=3"]
