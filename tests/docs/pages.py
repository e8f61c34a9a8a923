"""The pages of the documentation, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "tests/bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.heading}"


def read_blocks(page: Path, language: str) -> list[Block]:
    """Return the blocks of a page in one language, in their order."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        if match["language"] != language:
            continue
        headings = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)
        code = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        found.append(Block(page, headings[-1], language, code))
    return found


def find_block(page: str, heading: str, language: str = "sh") -> str:
    """Return the text of the first block in one language under a heading."""
    return next(block.text for block in read_blocks(ROOT / page, language) if block.heading == heading)


def without_blocks(text: str) -> str:
    """Return a page's text without its code blocks."""
    return _BLOCK.sub("", text)
