"""The images: pinned, not run by root, with a health check, and installing what the project asks for. None is built."""

import re
import shlex
import tomllib
from pathlib import Path

import ray

from tests.support.image_files import ROOT, image, requirements, stages

RAY = Path(ray.__file__).parent


def image_problems(text: str) -> list[str]:
    """What a Dockerfile must not be: unpinned, run by root, without health check or token, naming what is not there."""
    found, problems = stages(text), []
    for name, instructions in found.items():
        base = instructions[0][1].partition(" AS ")[0]
        if base not in found and not re.fullmatch(r"[\w./-]+:\d[\w.-]*(@sha256:[0-9a-f]{64})?", base):
            problems.append(f"{name}: {base} is not pinned")
        for word, rest in instructions:
            words = [each for each in rest.split() if not each.startswith("--")]
            source = re.search(r"--from=(\S+)", rest)
            if word == "COPY" and source and source[1] not in found:
                problems.append(f"{name}: no stage {source[1]}")
            if word == "COPY" and not source:
                problems += [f"{name}: no {each}" for each in words[:-1] if not (ROOT / each).exists()]
            if word == "ADD":
                problems.append(f"{name}: ADD")
    for name in ("cpu", "gpu"):
        last = dict(found.get(name, []))  # the last of each kind counts
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
            problems.append(f"{name}: root")
        if "CMD" not in last.get("HEALTHCHECK", ""):
            problems.append(f"{name}: no health check")
        if "RAY_AUTH_MODE=token" not in last.get("ENV", ""):
            problems.append(f"{name}: no token")
    return problems


def test_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert image_problems(text) == [] and list(stages(text)) == ["build-cpu", "build-gpu", "cpu", "gpu"]
    for right, wrong, problem in (
        ("ubuntu:24.04 AS cpu", "ubuntu AS cpu", "cpu: ubuntu is not pinned"),
        ("ubuntu:24.04 AS cpu", "ubuntu:latest AS cpu", "cpu: ubuntu:latest is not pinned"),
        ("COPY jobs jobs", "COPY job jobs", "build-cpu: no job"),
        ("--from=build-gpu", "--from=build-tpu", "gpu: no stage build-tpu"),
        ("USER 1000:1000", "USER 0:0", "gpu: root"),
        ("HEALTHCHECK", "LABEL", "cpu: no health check"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "gpu: no token"),
    ):
        assert right in text and problem in image_problems(text.replace(right, wrong))


def test_health_check_is_answered_without_a_token() -> None:
    (check,) = {rest for name in ("cpu", "gpu") for word, rest in image()[name] if word == "HEALTHCHECK"}
    port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", check)[0]
    assert f'"{path}"' in (RAY / "dashboard/http_server_agent.py").read_text()
    assert f"DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = {port}\n" in (RAY / "_private/ray_constants.py").read_text()
    assert all("wget" in packages for packages in apt_packages().values())


def apt_packages() -> dict[str, list[str]]:
    """What the final images install from the archive."""
    return {
        name: re.findall(r"--no-install-recommends ([^&]*)", " ".join(rest for _, rest in image()[name]))[0].split()
        for name in ("cpu", "gpu")
    }


def test_image_installs_what_the_project_asks_for() -> None:
    """The lines of pip name what Makefile and pyproject.toml name, with the same pins."""
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    run = [rest for name in ("build-cpu", "build-gpu") for _, rest in image()[name]]
    lines = [line.strip() for rest in run for line in rest.split("&&")]
    torch, bare, cpu, vllm, gpu = (shlex.split(line) for line in lines if line.startswith("pip install"))
    assert f"TORCH := {torch[-1]}\n" in makefile
    assert f"TORCH_INDEX := {torch[torch.index('--index-url') + 1]}\n" in makefile
    assert torch[-1].startswith(requirements()["torch"])
    assert f"install {' '.join(bare[2:])}\n" in makefile
    assert cpu[2:4] == ["-c", "constraints-cpu.txt"] and vllm[2:] == extras["gpu"]
    assert (cpu[-1], gpu[-1]) == (".[cpu]", ".[gpu,clouds]") and {"cpu", "gpu", "clouds"} <= extras.keys()
