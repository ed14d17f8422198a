"""The documentation: links hold on a forge and in the site, which is built strictly and is whole by itself."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.paths import ROOT
from tools.docs_site.hooks import LINK, PAGES, in_repository, to_site

TEXTS = [*map(Path, PAGES), *(file.relative_to(ROOT) for file in sorted((ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_links_lead_to_files_of_the_repository(text: Path) -> None:
    """As a forge follows them."""
    links = [in_repository(found["path"], text.as_posix()) for found in LINK.finditer((ROOT / text).read_text())]
    assert not [link for link in links if not (ROOT / link).is_file()]


@pytest.mark.parametrize(
    ("page", "link", "in_site"),
    [
        ("index.md", "](docs/shift.md#reading)", "](shift.md#reading)"),
        ("index.md", "](cluster/README.md)", "](cluster.md)"),
        ("index.md", "](LICENSE)", "](repository/LICENSE.txt)"),
        ("cluster.md", "](slurm.sh)", "](repository/cluster/slurm.sh)"),
        ("shift.md", "](../CONTRIBUTING.md)", "](contributing.md)"),
        ("shift.md", "](../configs/dev.yaml)", "](repository/configs/dev.yaml)"),
        ("shift.md", "](results/dev.json)", "](results/dev.json)"),
        ("reference/config.md", "](../settings.md)", "](../settings.md)"),
        ("reference/config.md", "](../../README.md)", "](../index.md)"),
        ("shift.md", "](../configs/nowhere.yaml)", "](../configs/nowhere.yaml)"),
        ("shift.md", "](../../elsewhere.txt)", "](../../elsewhere.txt)"),
        ("shift.md", "](https://arxiv.org/abs/2605.26403)", "](https://arxiv.org/abs/2605.26403)"),
        ("shift.md", "](#reading)", "](#reading)"),
    ],
)
def test_links_are_led_to_their_place_in_the_site(page: str, link: str, in_site: str) -> None:
    assert LINK.sub(to_site(page), link) == in_site


def build(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=360)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(tmp_path / "site")
    assert done.returncode == 0, done.stderr[-4000:]
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "python_api.html", "config.html", "contributing.html"} <= {page.name for page in pages}
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)")
    for page in pages:
        for address in loaded.findall(page.read_text()):
            parts = urlsplit(address)
            assert not parts.netloc, f"{page.name} loads {address}"
            if page.name != "404.html" and parts.path:  # which is served anywhere, so that its addresses are absolute
                assert (page.parent / parts.path).resolve().is_file(), f"{page.name}: {address} is not there"


@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[gone](gone.md)\n")
    config = (ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"^nav:\n.*", "nav: [index.md]\n", config, flags=re.DOTALL | re.MULTILINE)
    config = re.sub(r"^hooks:.*\n", "", config, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0 and "gone.md" in done.stderr
