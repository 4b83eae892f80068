"""The rule that turns HTML into text, where a text is HTML by its looks, or always."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from itertools import islice

from flyweight.data.html import html_text
from flyweight.data.rule import Edited, Rule
from flyweight.spec.cleaning import Markup

_PAGE = re.compile(r"\s*(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html)\b", re.I | re.S)
_CLOSED = re.compile(
    r"</(?:a|b|body|code|div|em|font|form|h[1-6]|head|i|li|ol|p|pre|script|section|span|strong"
    r"|style|table|td|th|title|tr|ul)\s*>",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[a-z!/][^<>]{0,1000}>", re.IGNORECASE)
_ENOUGH = 5
_SHARE = 10


def looks_like_html(text: str) -> bool:
    """It begins as a page does, or closes at least five of HTML's usual elements and has a tenth of
    its characters in tags: a text about HTML, or code with some, has less."""
    if _PAGE.match(text) is not None:
        return True
    closed = sum(1 for _ in islice(_CLOSED.finditer(text), _ENOUGH))
    return closed == _ENOUGH and _SHARE * sum(map(len, _TAG.findall(text))) >= len(text)


def markup_rules(table: Markup) -> Iterator[Rule]:
    yield partial(_markup, table.where == "all")


def _markup(always: bool, text: str) -> Edited | None:
    if not always and not looks_like_html(text):
        return None
    plain = html_text(text)
    if plain == text:
        return None
    first = _TAG.search(text)
    lines = max(0, text.count("\n") - plain.count("\n"))
    return Edited("markup", plain, lines, len(_TAG.findall(text)), first[0] if first else text)
