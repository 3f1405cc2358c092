"""The documentation names everything that is public, and every page can be found."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightning_rebasin

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NAMES = [name for name in lightning_rebasin.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_its_place_in_the_reference(name):
    pages = (DOCS / "reference").glob("*.md")
    directive = f"::: lightning_rebasin.{name}"
    holders = [p.name for p in pages if directive in p.read_text().split("\n")]
    assert len(holders) == 1, holders


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS))
        assert name in navigation, f"{name} is not in the nav of mkdocs.yml"
