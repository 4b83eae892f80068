"""Each cleaning rule: what it drops or edits, what it leaves, and what it counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.cleaner import Cleaner
from flyweight.data.document import Document
from flyweight.data.language import _scripts, languages, script_shares, windows
from flyweight.data.personal import iban, luhn, urls
from flyweight.data.quality import duplicate_ngrams, duplicates, top_ngram
from flyweight.data.tally import Tally
from flyweight.data.words import words
from flyweight.spec.cleaning import Clean
from flyweight.spec.errors import ConfigurationError

SlowWords = Callable[[str], list[tuple[str, int, int]]]


def cleaned(table: dict[str, Any], text: str) -> tuple[str | None, Tally]:
    tally = Tally()
    kept = Cleaner(Clean.parse(table))(Document("d", text, "s"), tally)
    return (kept.text if kept else None), tally


def edited(table: dict[str, Any], text: str) -> str:
    kept, _ = cleaned(table, text)
    assert kept is not None
    return kept


def dropped_by(table: dict[str, Any], text: str) -> str | None:
    """The rule that drops ``text``."""
    kept, tally = cleaned(table, text)
    rules = [rule for rule, count in tally.rules.items() if count.dropped]
    assert (kept is None) == bool(rules)
    return rules[0] if rules else None


PROSE = "The fox went to the river, and there it met an old crow. " * 2 + "They talked all night."


def test_no_rules_change_nothing() -> None:
    assert cleaned({}, PROSE) == (PROSE, Tally())


# -- markup

PAGE = (
    "<!DOCTYPE html><html><head><script>var x = '<p>';</script></head>"
    "<body><p>Fish &amp; chips.</p></body></html>"
)


@pytest.mark.parametrize(
    "text",
    [
        PAGE,
        "\n <html lang=en><p>Fish &amp; chips.</html>",
        "<div><p><b>Fish</b> &amp; <i>chips</i>.</p></div><span></span>",
    ],
)
def test_a_page_becomes_text(text: str) -> None:
    assert edited({"markup": {}}, text).strip() == "Fish & chips."


@pytest.mark.parametrize(
    "text",
    ["if a < b and c > d: pass", "say <b>bold</b> once", PROSE + "</p></p></p></p></p>" + PROSE],
)
def test_what_only_mentions_tags_stays_unless_all_is_said(text: str) -> None:
    assert edited({"markup": {}}, text) == text
    assert "</" not in edited({"markup": {"where": "all"}}, text)


# -- URLs and what is personal


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see https://a.org/x?y=1#z.", ["https://a.org/x?y=1#z"]),
        ("(http://a.org/b_(c)) and <ftp://x.y/>", ["http://a.org/b_(c)", "ftp://x.y/"]),
        ("WWW.Example.com, awww.no", ["WWW.Example.com"]),
        ("no://thing here", []),
        ("http://a.b/" + "(" * 3 + ")" * 9 + ", x", ["http://a.b/((()))"]),
    ],
)
def test_urls_are_found(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in urls(text)] == found


def test_what_is_done_to_urls() -> None:
    text = "One line.\nSee http://a.b.org/x now.\nLast."
    assert edited({"urls": {}}, text) == "One line.\nSee <url> now.\nLast."
    assert edited({"urls": {"action": "remove"}}, text) == "One line.\nSee  now.\nLast."
    assert edited({"urls": {"action": "drop_line"}}, text) == "One line.\nLast."
    assert dropped_by({"urls": {"action": "drop"}}, text) == "urls.action"
    assert dropped_by({"urls": {"hosts": ["B.org"]}}, text) == "urls.hosts"
    assert dropped_by({"urls": {"hosts": ["xb.org", "b.or"]}}, text) is None
    assert dropped_by({"urls": {"max_share": 0.3}}, text) == "urls.max_share"
    assert dropped_by({"urls": {"max_share": 0.5}}, text) is None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "write to Ann.Bell+x@mail.example.co.uk"),
        ("phone", "call +44 20 7946 0958"),
        ("phone", "call (212) 555-0123"),
        ("phone", "call 212-555-0123"),
        ("phone", "call +1.212.555.0123"),
        ("ip", "from 8.8.4.4"),
        ("ip", "from 2001:4860:4860::8888"),
        ("card", "pay 4111 1111 1111 1111"),
        ("card", "pay 3782-822463-10005"),
        ("card", "pay 5555555555554444"),
        ("iban", "to DE89 3704 0044 0532 0130 00"),
        ("iban", "to GB82WEST12345698765432"),
    ],
)
def test_personal_data_is_masked_dropped_or_kept(kind: str, text: str) -> None:
    kinds = ["email", "phone", "ip", "card", "iban"]
    _, _, rest = text.partition("to " if text.startswith("write") else " ")
    start = text[: len(text) - len(rest)]
    assert edited({"personal": {}}, f"{text}, please") == f"{start}<{kind}>, please"
    assert dropped_by({"personal": {kind: "drop"}}, text) == f"personal.{kind}"
    assert edited({"personal": dict.fromkeys(kinds, "keep")}, text) == text


@pytest.mark.parametrize(
    "text",
    [
        "git@github, @name, a@b, x@y.z1",
        "pi is 3.14159265358979, on 2024-01-31 at 12:30:45",
        "127.0.0.1, 192.168.1.1, 10.0.0.1, 300.1.1.1, ::1, std::vector, 1.2.3.4.5",
        "4111 1111 1111 1112, 20050327013919, 1234567890123456",
        "DE89 3704 0044 0532 0130 01, ABCD 1234 5678 9012",
        "+0000000120, 555-0123, 1234-5678, version 10.15.7",
    ],
)
def test_what_only_looks_personal_stays(text: str) -> None:
    assert edited({"personal": {}}, text) == text


@given(st.integers(0, 10**18))
def test_one_check_digit_in_ten_passes_luhn(number: int) -> None:
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


@given(place=st.integers(0, 14), digit=st.integers(1, 9))
def test_luhn_sees_every_changed_digit(place: int, digit: int) -> None:
    digits = list("378282246310005")
    digits[place] = str((int(digits[place]) + digit) % 10)
    assert luhn("378282246310005")
    assert not luhn("".join(digits))


@pytest.mark.parametrize(
    "number", ["GB82WEST12345698765432", "FR1420041010050500013M02606", "NO9386011117947"]
)
def test_ibans_of_the_standard_s_examples_hold(number: str) -> None:
    assert iban(number)
    assert not iban(number[:-1] + str((int(number[-1]) + 1) % 10))


# -- lines


def test_lines_are_dropped_and_counted() -> None:
    text = (
        'Home\nA whole sentence here.\n\n"Quoted too!"\n(Is it?)\n中文句子。\n'
        "Please enable JavaScript now.\n"
    )
    kept, tally = cleaned({"lines": {"terminal_punctuation": True}}, text)
    assert kept == text.removeprefix("Home\n")
    count = tally.rules["lines.terminal_punctuation"]
    assert (count.lines, count.found, count.characters, count.edited) == (1, 1, 5, 1)
    assert count.samples == [("d", "Home")]
    assert edited({"lines": {"min_words": 3}}, text) == (
        "A whole sentence here.\n\n中文句子。\nPlease enable JavaScript now.\n"
    )
    without = edited({"lines": {"containing": ["javascript", "QUOTED"]}}, text)
    assert without == "Home\nA whole sentence here.\n\n(Is it?)\n中文句子。\n"


def test_what_is_said_again_goes() -> None:
    text = "a b\na b\n\nc\n\nc\n\na b\nd\na b\n\nc"
    assert edited({"repeated": {}}, text) == "a b\n\nc\n\na b\nd\na b\n\nc"
    everywhere = {"repeated": {"lines": "all", "paragraphs": "keep"}}
    assert edited(everywhere, text).split() == ["a", "b", "c", "d"]
    paragraphs = {"repeated": {"lines": "keep", "paragraphs": "all"}}
    assert edited(paragraphs, text) == "a b\na b\n\nc\n\na b\nd\na b"


@given(st.lists(st.sampled_from(["a", "b", " a ", ""]), max_size=12))
def test_consecutive_lines_differ_afterwards(lines: list[str]) -> None:
    kept, _ = cleaned({"repeated": {"paragraphs": "keep"}}, "\n".join(lines))
    told = [line.strip() for line in (kept or "").split("\n") if line.strip()]
    assert all(a != b for a, b in pairwise(told))
    wanted = [line.strip() for line in lines if line.strip()]
    assert told == [line for i, line in enumerate(wanted) if not i or line != wanted[i - 1]]


# -- whole documents


@pytest.mark.parametrize(
    ("table", "text", "rule"),
    [
        ({}, "too few words", "length.min_words"),
        ({"min_words": 3}, "just three words", None),
        ({"min_words": 4}, "你好世界", None),
        ({"min_words": 1, "max_words": 2}, "just three words", "length.max_words"),
        ({"min_words": 0, "min_characters": 4}, "abc", "length.min_characters"),
        ({"min_words": 0, "max_characters": 2}, "abc", "length.max_characters"),
        ({"min_words": 1}, "a b c d e f", "length.min_mean_word"),
        ({"min_words": 1}, "extraordinarily misunderstanding", "length.max_mean_word"),
        (
            {"min_words": 1, "min_terminal_lines": 0.5},
            "One.\ntwo\nthree",
            "length.min_terminal_lines",
        ),
        ({"min_words": 1, "min_terminal_lines": 0.3}, "One.\ntwo\nthree", None),
    ],
)
def test_length(table: dict[str, Any], text: str, rule: str | None) -> None:
    assert dropped_by({"length": table}, text) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PROSE, None),
        ("# one # two # three", "symbols.max_hashes"),
        ("so ... it ... goes ... on", "symbols.max_ellipses"),
        ("- one\n- two\n* three\n• four", "symbols.max_bullet_lines"),
        (f"{PROSE}\nread more...\nread on…", "symbols.max_ellipsis_lines"),
        ("1 2 3 4 a", "symbols.min_words_with_letters"),
        ("a{=};;(=)[]{}", "symbols.max_share"),
        ("दो और तीन पाँच होते हैं।", None),
    ],
)
def test_symbols(text: str, rule: str | None) -> None:
    assert dropped_by({"symbols": {}}, text) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PROSE, None),
        ("a b c\nd e f\n" * 2, "repetition.duplicate_lines"),
        (
            "\n".join([*"abcdefgh", "long line " * 9, "long line " * 9]),
            "repetition.duplicate_line_characters",
        ),
        ("spam eggs " * 9 + "ham", "repetition.top_ngrams.2"),
        ("one two three four five six " * 2, "repetition.duplicate_ngrams.5"),
    ],
)
def test_repetition(text: str, rule: str | None) -> None:
    table = {"top_ngrams": {"2": 0.5}} if text is PROSE or "one two" in text else {}
    if text is PROSE:
        table = {"duplicate_ngrams": {}, "top_ngrams": {"2": 0.5}}
    assert dropped_by({"repetition": table}, text) == rule


@given(text=st.text("ab 中.", max_size=40), n=st.integers(1, 4))
def test_repetition_counts_the_characters_of_slow_sets(
    slow_words: SlowWords, text: str, n: int
) -> None:
    found = slow_words(text)
    lengths = [end - start for _, start, end in found]
    grams = [tuple(w for w, _, _ in found[i : i + n]) for i in range(len(found) - n + 1)]

    def share(places: list[int]) -> float:
        inside = {word for place in places for word in range(place, place + n)}
        return sum(lengths[word] for word in inside) / max(1, sum(lengths))

    again = [i for i, gram in enumerate(grams) if gram in grams[:i]]
    assert duplicate_ngrams(words([text]), n) == pytest.approx(share(again))
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    tied = [g for g, count in counts.items() if count == most]
    if most < 2:
        assert top_ngram(words([text]), n) == 0
    elif len(tied) <= 8:
        best = max(share([i for i, g in enumerate(grams) if g == gram]) for gram in tied)
        assert top_ngram(words([text]), n) == pytest.approx(best)


def test_duplicate_parts() -> None:
    assert duplicates([]) == (0, 0)
    assert duplicates(["aa", "b", "aa", "aa"]) == (0.5, 4 / 7)


def test_bad_words_whole_and_in_phrases(tmp_path: Any) -> None:
    listed = tmp_path / "bad.txt"
    listed.write_text("darn\n\nyou  Idiot\n坏词\n", encoding="utf-8")
    table = {"files": [str(listed)], "words": ["Heck"]}
    text = "darned heckler\nYou, idiot! Darn.\n这是坏词吗\nidiot you\nＨＥＣＫ"
    assert dropped_by({"bad_words": table}, text) == "bad_words"
    assert dropped_by({"bad_words": table | {"max_count": 4}}, text) is None
    assert dropped_by({"bad_words": table | {"max_count": 3}}, text) == "bad_words"
    assert edited({"bad_words": table | {"action": "mask"}}, text) == (
        "darned heckler\n<...>! <...>.\n这是<...>吗\nidiot you\n<...>"
    )
    assert edited({"bad_words": table | {"action": "drop_line"}}, text) == (
        "darned heckler\nidiot you"
    )
    with pytest.raises(ConfigurationError, match="'...' has no letter or digit"):
        Cleaner(Clean.parse({"bad_words": {"words": ["..."]}}))
    with pytest.raises(ConfigurationError, match="bad_words.files: nowhere.txt cannot be read"):
        Cleaner(Clean.parse({"bad_words": {"files": ["nowhere.txt"]}}))


def test_keywords() -> None:
    stuffed = "buy cheap watches, buy cheap watches here: watches, watches and best price"
    assert dropped_by({"keywords": {"max_top_word": 0.3}}, stuffed) == "keywords.max_top_word"
    assert dropped_by({"keywords": {"max_top_word": 1.0}}, stuffed) is None
    listed = {"words": ["buy", "best price"], "max_top_word": 1.0}
    # 4 words of 12, the phrase counting as two.
    assert dropped_by({"keywords": listed | {"max_density": 4.1 / 12}}, stuffed) is None
    assert dropped_by({"keywords": listed | {"max_density": 3.9 / 12}}, stuffed) == (
        "keywords.max_density"
    )


# -- scripts and languages


def test_scripts_are_unicode_s() -> None:
    """Each letter's script as the `regex` module has it, where both know the letter."""
    names, script_of = _scripts()
    letter = regex.compile(r"\p{L}")
    patterns = {name: regex.compile(rf"\p{{Script={name}}}") for name in names}
    different = []
    for code, number in enumerate(script_of.tolist()):
        character = chr(code) if not 0xD800 <= code < 0xE000 else " "
        if number and letter.match(character):
            if not patterns[names[number - 1]].match(character):
                different.append(hex(code))
    assert not different
    covered = sum(1 for number in script_of.tolist() if number)
    assert covered > 135_000


def test_script_shares() -> None:
    shares = script_shares("Привет, abc! 中")
    assert shares == {"Cyrillic": 0.6, "Latin": 0.3, "Han": 0.1}
    assert script_shares("1, 2!") == {}
    table = {"scripts": {"keep": ["Latin", "Han"], "min_share": 0.5}}
    assert dropped_by(table, "Привет, abc! 中") == "scripts"
    assert dropped_by(table, "Привет, abcdefg 中") is None
    assert dropped_by(table, "1, 2!") == "scripts"
    with pytest.raises(
        ConfigurationError, match="no script is called 'latin'; did you mean `Latin`"
    ):
        Cleaner(Clean.parse({"scripts": {"keep": ["latin"]}}))


@given(st.text("ab \n", max_size=1500))
def test_windows_are_parts_of_the_text(text: str) -> None:
    found = windows(text)
    assert len(found) <= 5
    assert all(len(window) <= 200 and window in text for window in found)
    assert bool(found) == bool(text.strip())


def test_languages() -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    french = "Il était une fois une petite fille que tout le monde aimait bien, surtout sa mère. "
    assert languages(PROSE) == ["en"]
    assert languages("") == []
    table = {"languages": {"keep": ["en"]}}
    assert dropped_by(table, PROSE) is None
    assert dropped_by(table, french) == "languages"
    mixed = PROSE * 2 + french * 8
    assert set(languages(mixed)) == {"en", "fr"}
    assert dropped_by(table, mixed) == "languages"
    assert dropped_by({"languages": {"keep": ["en"], "min_share": 0.2}}, mixed) is None
    with pytest.raises(ConfigurationError, match="'english' is none of the languages"):
        Cleaner(Clean.parse({"languages": {"keep": ["english"]}}))


def test_perplexity_asks_the_model_that_is_handed_in() -> None:
    """The score here is a real, if small, model: the entropy of the text's own characters."""

    def entropy(text: str) -> float:
        counts = Counter(text)
        return -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())

    table = Clean.parse({"perplexity": {"model": "m", "min": 1.5, "max": 4.4, "characters": 60}})
    cleaner = Cleaner(table, entropy)
    tally = Tally()
    texts = [
        "abababab",
        PROSE,
        "the quick brown fox jumps over lazy dogs 0123456789 THE QUICK",
        PROSE + "0123456789ABCDEFGHIJKLMNOPQ",
    ]
    kept = [cleaner(Document("d", text, "s"), tally) is not None for text in texts]
    assert kept == [False, True, False, True]
    assert set(tally.rules) == {"perplexity.min", "perplexity.max"}
    with pytest.raises(ConfigurationError, match="needs a model to score with"):
        Cleaner(table)


def test_rules_follow_each_other_and_what_is_empty_goes() -> None:
    text = "www.a.org\nJust a few words.\nJust a few words."
    table = {"urls": {"action": "drop_line"}, "repeated": {}, "length": {"min_words": 4}}
    kept, tally = cleaned(table, text)
    assert kept == "Just a few words."
    assert list(tally.rules) == ["urls.action", "repeated.lines"]
    assert dropped_by(table, "http://a.org/b") == "nothing left"
