"""Reading built pages: their links, anchors and files."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

LOADED = {  # what a browser fetches by itself: tag and attribute
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
    "embed": "src",
    "link": "href",
}


@dataclass(frozen=True)
class Link:
    """A reference from a page, and the tag it stands in."""

    page: Path
    target: str
    tag: Tag

    @property
    def is_inside(self) -> bool:
        """Whether it stays in the site."""
        parts = urlsplit(self.target)
        return not parts.scheme and not parts.netloc

    def file(self) -> Path:
        """The file it leads to."""
        path = unquote(urlsplit(self.target).path)
        found = (self.page.parent / path).resolve() if path else self.page
        return found / "index.html" if found.is_dir() else found

    def anchor(self) -> str:
        """The place in the file it leads to, if it names one."""
        return unquote(urlsplit(self.target).fragment)


@cache
def soup(page: Path) -> BeautifulSoup:
    """A page, parsed once."""
    return BeautifulSoup(page.read_text("utf8"), "html.parser")


def pages(site: Path) -> list[Path]:
    """Every page of the site that Sphinx made."""
    ours = site.rglob("*.html")
    aside = {"_static", "report", "downloads"}
    return sorted(p for p in ours if p.relative_to(site).parts[0] not in aside)


def links(page: Path) -> list[Link]:
    """Everything on a page that a reader can follow."""
    return [Link(page, tag["href"], tag) for tag in soup(page).select("a[href]")]


def loads(page: Path) -> list[Link]:
    """Everything that a browser loads by itself for a page."""
    found = [
        Link(page, tag[attribute], tag)
        for name, attribute in LOADED.items()
        for tag in soup(page).select(f"{name}[{attribute}]")
        if "canonical" not in tag.get("rel", [])
    ]
    return [link for link in found if not link.target.startswith("data:")]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Every place of a page that a link can lead to."""
    return frozenset(tag["id"] for tag in soup(page).select("[id]"))
