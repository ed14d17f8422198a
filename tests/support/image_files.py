"""What Dockerfile and pyproject.toml say, for tests of the images and of the files that use them."""

import re
import tomllib

from tests.support.paths import ROOT


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage of a Dockerfile by its name, FROM first; the name of one without a name is empty."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, list[tuple[str, str]]] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found[rest.partition(" AS ")[2]] = []
        list(found.values())[-1].append((word, " ".join(rest.split())))
    return found


def image() -> dict[str, list[tuple[str, str]]]:
    return stages((ROOT / "Dockerfile").read_text())


def image_user() -> int:
    """Numeric user of the images."""
    (user,) = {rest for name in ("cpu", "gpu") for word, rest in image()[name] if word == "USER"}
    return int(user.partition(":")[0])


def image_folders() -> set[str]:
    """Folders that both images make for their user."""
    cpu, gpu = (" ".join(rest for word, rest in image()[name] if word == "RUN") for name in ("cpu", "gpu"))
    return set(re.findall(r"(?<= )/home\S*", cpu)) & set(re.findall(r"(?<= )/home\S*", gpu))


def requirements() -> dict[str, str]:
    """Requirements of the package by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    return {re.split(r"[\[<>=!~]", each)[0]: each for each in reversed(every)}
