"""Hooks of the documentation site: pages refer to files of the repository, so these files travel with the site.

On a code host ``docs/merging.md`` links to ``../examples/results/…``, which lies outside the folder of the site.  Here
each such file is added to the site under its own path, and the link is made to point there.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: ``](../examples/results/a.png)``, from a page in docs/ or one folder deeper.
OUTSIDE = re.compile(
    r"\]\((?P<up>(?:\.\./)+)(?P<path>(?:examples|tests)/[^)#\s]+)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to."""
    wanted = set()
    for page in files.documentation_pages():
        text = Path(page.abs_src_path or "").read_text()
        wanted |= {found["path"] for found in OUTSIDE.finditer(text)}
    for path in sorted(wanted):
        source = ROOT / path
        # A link to a folder or to nothing is left as it is, and the strict build complains of it.
        if source.is_file():
            files.append(
                File.generated(config, path, abs_src_path=str(source))
            )
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Point links to files outside docs/ at their copies inside the site: one folder up less."""

    def inside(found: re.Match[str]) -> str:
        return f"]({found['up'][3:]}{found['path']}"

    return OUTSIDE.sub(inside, markdown)
