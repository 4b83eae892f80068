"""The text of an HTML page, as a reader sees it.

selectolax (Lexbor) builds the tree that the HTML standard prescribes for any input, so that an
unclosed <nav> does not swallow the page as it does for event parsers such as Python's own, and it
is one small compiled module; trafilatura finds the main article better, and takes lxml and five
more packages and some thirty times the time: what is boilerplate is left to the cleaning rules.
"""

from __future__ import annotations

# ruff: noqa: SIM905 (tags read best as words)
import re
from typing import Any

# Not shown to a reader, or the same on every page of a site.
_LEFT_OUT = frozenset(
    "head script style noscript template svg math iframe object canvas nav aside footer form"
    " button select textarea".split()
)
# A blank line follows these.
_APART = frozenset(
    "article blockquote dl figure h1 h2 h3 h4 h5 h6 ol p pre section table ul".split()
)
_BLOCKS = _APART | frozenset(
    "address body dd details div dt fieldset figcaption header hr li main summary tbody td tfoot"
    " th thead tr".split()
)
_SPACES = re.compile(r"[^\S\n]+")
_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([-\w.:]+)""", re.IGNORECASE)


def declared_charset(data: bytes) -> str | None:
    """The encoding that the page's <meta> declares, if it does so where the standard looks."""
    found = _CHARSET.search(data[:1024])
    return found[1].decode("ascii", "ignore") if found else None


def html_text(page: str) -> str:
    """The title and the text of a page: a line a block, a blank line around paragraphs and such,
    <pre> as it is. "" for a page without text."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    out = _Lines()
    title = tree.css_first("title")
    if title is not None:
        out.text(title.text())
        out.end(apart=True)
    if tree.body is not None:
        _walk(tree.body, out)
    return out.done()


def _walk(root: Any, out: _Lines) -> None:
    # A stack instead of recursion: a page may be thousands of tags deep. "end" marks a closing tag.
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, closing = stack.pop()
        tag = node.tag
        if closing:
            out.end(apart=tag in _APART)
            out.preformatted -= tag == "pre"
        elif tag == "-text":
            out.text(node.text_content or "")
        elif tag == "br":
            out.end(apart=False)
        elif tag not in _LEFT_OUT and not tag.startswith(("-", "_", "!")):
            if tag in _BLOCKS:
                out.end(apart=tag in _APART)
                out.preformatted += tag == "pre"
                stack.append((node, True))
            stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]


class _Lines:
    """Lines of text, with white space as a browser shows it."""

    def __init__(self) -> None:
        self.preformatted = 0
        self._lines: list[str] = []
        self._line = ""

    def text(self, text: str) -> None:
        if self.preformatted:
            *whole, rest = text.split("\n")
            for line in whole:
                self._lines.append((self._line + line).rstrip())
                self._line = ""
            self._line += rest
        else:
            text = _SPACES.sub(" ", text.replace("\n", " "))
            self._line += text.lstrip(" ") if self._line.endswith((" ", "\n")) else text

    def end(self, apart: bool) -> None:
        """End the line, if it has text; ``apart``: a blank line follows."""
        line = self._line.rstrip() if self.preformatted else self._line.strip()
        if line:
            self._lines.append(line)
        self._line = ""
        if apart and self._lines and self._lines[-1]:
            self._lines.append("")

    def done(self) -> str:
        self.end(apart=False)
        text = "\n".join(self._lines).strip("\n")
        return text + "\n" if text else ""
