"""README fits two screens; every link, file and page that the documentation names is there."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, without_blocks
from tests.servers import ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:api|core|workers|tests|docs|monitoring|\.ci)/[\w./-]*)`")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(page: Path) -> list[str]:
    return _LINK.findall(without_blocks(page.read_text()))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_resolves(page: Path) -> None:
    for link in links_of(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for path in _PATH.findall(without_blocks(page.read_text())):
        assert (ROOT / path).exists(), path


def test_every_page_can_be_reached_from_readme() -> None:
    reached: set[Path] = set()
    to_read = [ROOT / "README.md"]
    while to_read:
        page = to_read.pop()
        if page in reached:
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in links_of(page) if not link.startswith("https://"))
        to_read += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_table_row_has_as_many_cells_as_its_header(page: Path) -> None:
    """A row that is too long loses its last cells without a word."""
    for table in re.findall(r"(?:^\|.*\n)+", without_blocks(page.read_text()), re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(rows)) == 1, table
