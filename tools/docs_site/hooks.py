"""Brings pages of the repository that lie outside ``docs/`` into the site, so that one text serves it and a forge.

A link is written as it works in the repository, relative to the file that has it: ``docs/shift.md`` in the README,
``../CONTRIBUTING.md`` in a page of ``docs/``. In the site, a link to a page leads to the page, and a link to any other
file of the repository to a copy of it below ``repository/``; so the site is complete by itself, offline and wherever it
is served. Links to missing files stay as they are, and are an error of ``mkdocs build --strict``.
"""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "cluster/README.md": "cluster.md",
}
"""Files of the repository that are pages of the site, with the name of the page."""
COPIES = "repository"
"""Folder of the site for copies of other files."""
LINK = re.compile(r"(?P<before>\]\()(?P<path>[^)\s#:]+)(?P<after>(#[^)\s]*)?\))")
"""A Markdown link to a file; not addresses with a scheme, nor anchors in the same page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs: add the pages, and copies of what any page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for file in files.documentation_pages():
        for match in LINK.finditer(file.content_string):
            path = in_repository(match["path"], source_of(file.src_uri))
            if is_copied(path) and files.get_file_from_path(copy_of(path)) is None:
                files.append(File.generated(config, copy_of(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Called by mkdocs: lead each link of a page to where its target is in the site."""
    return LINK.sub(to_site(page.file.src_uri), markdown)


def to_site(page: str) -> "Callable[[re.Match[str]], str]":
    """A function that rewrites a match of ``LINK`` in ``page`` for the site."""

    def link(match: "re.Match[str]") -> str:
        path = in_repository(match["path"], source_of(page))
        if path in PAGES:
            target = PAGES[path]
        elif path.startswith(DOCS):
            target = path.removeprefix(DOCS)
        elif is_copied(path):
            target = copy_of(path)
        else:
            return match[0]
        return match["before"] + posixpath.relpath(target, posixpath.dirname(page) or ".") + match["after"]

    return link


def source_of(page: str) -> str:
    """The file of the repository that a page of the site comes from."""
    return next((source for source, site_page in PAGES.items() if site_page == page), DOCS + page)


def in_repository(path: str, source: str) -> str:
    """Where a link in ``source`` leads, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path))


def is_copied(path: str) -> bool:
    """Whether ``path`` is a file of the repository that is no page."""
    outside = path in PAGES or path.startswith((DOCS, "../", "/")) or path.endswith(".md")
    return not outside and (ROOT / path).is_file()


def copy_of(path: str) -> str:
    """Its path in the site; with an ending, by which a browser knows the file type."""
    return f"{COPIES}/{path}" if posixpath.splitext(path)[1] else f"{COPIES}/{path}.txt"
