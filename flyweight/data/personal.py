"""What identifies a person or leads to a page: e-mail, phone, IP, card numbers, IBANs, URLs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import partial

from flyweight.data.rule import Dropped, Edited, Rule
from flyweight.spec.cleaning import Personal, Urls

_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
# International (+ and 8 to 15 digits), and North America's 3-3-4.
_PHONE = re.compile(
    r"(?<![\w+])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){5,12}(?![\w])"
    r"|(?<![\w+.-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-.]\d{4}(?![\w-])"
)
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w:]|\.\d)"
    r"|(?<![\w.:])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"
)
_CARD = re.compile(r"(?<![\w.-])[2-6]\d(?:[ -]?\d){11,17}(?![\w]|[.-]\d)")
# The prefixes and lengths of the large issuers (ISO/IEC 7812 ranges in use): without them one
# number in ten of any kind passes for a card's.
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_URL = re.compile(r"(?:(?:https?|ftp)://|(?<![\w.])www\.)[^\s<>\"'`{}|\\^]+", re.IGNORECASE)
_AFTER_URL = ".,;:!?*_)]"


def luhn(digits: str) -> bool:
    """Whether the last of ``digits`` is the check digit of the rest (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


def is_card(digits: str) -> bool:
    return _ISSUED.fullmatch(digits) is not None and luhn(digits)


def iban(text: str) -> bool:
    """Whether the check digits of an IBAN hold (ISO 13616: remainder 1 mod 97)."""
    moved = text[4:] + text[:4]
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_ip(text: str) -> bool:
    """Private and reserved addresses (127.0.0.1, 192.168.0.1) identify nobody."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and (address.version == 4 or address in _IPV6)


_IPV6 = ipaddress.ip_network("2000::/3")
_KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    # In this order: an IBAN or a card number has runs that look like a phone's.
    "email": (_EMAIL, lambda _: True),
    "iban": (_IBAN, lambda text: iban(text.replace(" ", ""))),
    "card": (_CARD, lambda text: is_card(re.sub("[ -]", "", text))),
    "ip": (_IP, _is_ip),
    "phone": (_PHONE, lambda text: 8 <= sum(c.isdigit() for c in text) <= 15),
}


def personal_rules(table: Personal) -> Iterator[Rule]:
    """A rule for each kind that is not kept."""
    for kind in _KINDS:
        if (action := getattr(table, kind)) != "keep":
            yield partial(_personal, kind, action)


def _personal(kind: str, action: str, text: str) -> Dropped | Edited | None:
    pattern, holds = _KINDS[kind]
    rule = f"personal.{kind}"
    found: list[str] = []

    def mask(match: re.Match[str]) -> str:
        if not holds(match[0]):
            return match[0]
        found.append(match[0])
        return f"<{kind}>"

    masked = pattern.sub(mask, text)
    if not found:
        return None
    if action == "drop":
        return Dropped(rule, found[0])
    return Edited(rule, masked, 0, len(found), found[0])


def url_rules(table: Urls) -> Iterator[Rule]:
    """Those that drop documents, then the one that edits."""
    if table.max_share is not None:
        yield partial(_url_share, table.max_share)
    if table.hosts:
        yield partial(_url_hosts, tuple(host.lower().strip(".") for host in table.hosts))
    if table.action != "keep":
        yield partial(_urls, table.action)


def urls(text: str) -> Iterator[tuple[int, int]]:
    """The URLs of a text, (start, end): http, https, ftp and www, less the punctuation behind."""
    for match in _URL.finditer(text):
        end = match.end()
        # A bracket that was opened in the URL belongs to it.
        closed = match[0].count(")") - match[0].count("(")
        while (last := text[end - 1]) in _AFTER_URL and (last != ")" or closed > 0):
            closed -= last == ")"
            end -= 1
        yield match.start(), end


def _url_share(most: float, text: str) -> Dropped | None:
    share = sum(end - start for start, end in urls(text)) / max(1, len(text))
    return Dropped("urls.max_share", f"{share:.3f}") if share > most else None


def _url_hosts(hosts: tuple[str, ...], text: str) -> Dropped | None:
    for start, end in urls(text):
        place = re.split(r"[/?#]", text[start:end].lower().split("://")[-1], maxsplit=1)[0]
        host = place.split("@")[-1].split(":")[0].strip(".")
        if any(host == each or host.endswith(f".{each}") for each in hosts):
            return Dropped("urls.hosts", text[start:end])
    return None


def _urls(action: str, text: str) -> Dropped | Edited | None:
    spans = list(urls(text))
    if not spans:
        return None
    first = text[slice(*spans[0])]
    if action == "drop":
        return Dropped("urls.action", first)
    if action == "drop_line":
        kept, lines = without_lines(text, spans)
        return Edited("urls.action", kept, lines, len(spans), first)
    masked = replaced(text, spans, "<url>" if action == "mask" else "")
    return Edited("urls.action", masked, 0, len(spans), first)


def replaced(text: str, spans: list[tuple[int, int]], by: str) -> str:
    """``text`` with each of ``spans`` (in order, apart) replaced."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], by]
        at = end
    return "".join([*parts, text[at:]])


def without_lines(text: str, spans: list[tuple[int, int]]) -> tuple[str, int]:
    """``text`` without the lines that one of ``spans`` (in order) touches, and how many went."""
    kept: list[str] = []
    at, span = 0, 0
    lines = text.split("\n")
    for line in lines:
        end = at + len(line)
        while span < len(spans) and spans[span][1] <= at:
            span += 1
        if span == len(spans) or spans[span][0] >= end:
            kept.append(line)
        at = end + 1
    return "\n".join(kept), len(lines) - len(kept)
