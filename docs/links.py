"""Links between pages: each must name a file that is there, and a heading within it."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
NAME = re.compile(r"`(test_\w+)`")


def pages() -> list[Path]:
    """Return every page of the project."""
    return sorted(
        [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("**/*.md")]
    )


def broken(page: Path) -> list[str]:
    """Return what is wrong with a page's links to files and headings, and with the tests that it names."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [*_wrong_links(page, text), *_unknown_tests(page, text)]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def _wrong_links(page: Path, text: str) -> Iterator[str]:
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            yield f"{page.name}: {link} leads nowhere"
        elif anchor and anchor not in _anchors(target):
            yield f"{page.name}: {link}: there is no such heading"


def _anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))}


def _unknown_tests(page: Path, text: str) -> Iterator[str]:
    """Each `test_…` is a file of tests, or a function in the files that its line, or row, links to, else in any."""
    everywhere = sorted((ROOT / "tests").rglob("test_*.py"))
    modules = {path.stem for path in everywhere}
    for line in text.splitlines():
        names = [name for name in NAME.findall(line) if name not in modules]
        linked = [page.parent / link for link in LINK.findall(line) if link.endswith(".py")]
        found = "".join(path.read_text(encoding="utf-8") for path in (linked or everywhere) if names and path.is_file())
        for name in names:
            if f"def {name}(" not in found:
                yield f"{page.name}: `{name}` is in no file that its line links to"
