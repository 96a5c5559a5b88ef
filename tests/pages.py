"""What a browser sees of a page."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"path"}
TAGS = VOID | {
    "b", "code", "details", "div", "li", "p", "small", "span", "style", "summary", "svg", "table", "tbody", "td", "th",
    "thead", "title", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {
    "aria-label", "class", "colspan", "d", "fill", "height", "opacity", "open", "preserveaspectratio", "role", "style",
    "viewbox", "width",
}  # fmt: skip


class Page(HTMLParser):
    """The text and the tags of a page; an error where it is not balanced or holds what it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self) -> str:
        return "".join(self.texts)


def parsed(html: str) -> Page:
    """A page that is balanced and inert."""
    html.encode()  # no lone surrogates
    page = Page()
    page.feed(html)
    page.close()
    assert not page.open
    return page
