"""What a dataset's build may drop or edit: cleaning rules, near-duplicates, evaluation text.

Every table is off unless it is written; an empty one (``urls = {}``) takes the defaults below.
``docs/cleaning.md`` has a section for each, with what it counts.
"""

from __future__ import annotations

from typing import Annotated, Literal

from flyweight.spec.reading import Count, NotNegative, Positive, Share, Within
from flyweight.spec.table import Table, field


class Markup(Table):
    """HTML to text: tags, comments, scripts and styles go, entities become characters.

    ``where = "auto"`` touches what is HTML by its looks alone (it starts as a page does, or closes
    at least five elements and has a tenth of its characters in tags), "all" every document.
    """

    where: Literal["auto", "all"] = "auto"


class Personal(Table):
    """What identifies a person: masked (``<email>``), or a reason to drop the document.

    Card numbers count where an issuer has such numbers and their Luhn sum holds, IBANs where their
    remainder mod 97 is 1, phone numbers in the international form and North America's.
    """

    email: Literal["keep", "mask", "drop"] = "mask"
    phone: Literal["keep", "mask", "drop"] = "mask"
    ip: Literal["keep", "mask", "drop"] = "mask"
    card: Literal["keep", "mask", "drop"] = "mask"
    iban: Literal["keep", "mask", "drop"] = "mask"


class Urls(Table):
    """``action`` is done to each URL, or to the line that has one, or to the document.

    Documents with more than ``max_share`` of their characters in URLs are dropped first, and those
    that name a host in ``hosts`` or below one.
    """

    action: Literal["keep", "mask", "remove", "drop_line", "drop"] = "mask"
    max_share: Share | None = None
    hosts: list[str] = field(default_factory=list)


class Lines(Table):
    """Lines to drop. Blank lines stay.

    ``terminal_punctuation``: those that end in none (C4, arXiv:1910.10683); fewer than
    ``min_words`` words; those with one of the phrases ``containing`` (case aside).
    """

    terminal_punctuation: bool = False
    min_words: Count = 0
    containing: list[str] = field(default_factory=list)


class Repeated(Table):
    """Lines and paragraphs said again within a document: copies right below ("consecutive") or
    anywhere ("all") go, the first stays. Blank lines are not lines here."""

    lines: Literal["keep", "consecutive", "all"] = "consecutive"
    paragraphs: Literal["keep", "consecutive", "all"] = "consecutive"


class Length(Table):
    """Documents shorter or longer than this are dropped. The defaults are Gopher's
    (arXiv:2112.11446, table A1) but for the longest, which is not bounded."""

    min_characters: Count = 0
    max_characters: Positive | None = None
    min_words: Count = 50
    max_words: Positive | None = None
    min_mean_word: NotNegative = 3.0
    max_mean_word: NotNegative = 10.0
    # The least share of lines that end in terminal punctuation.
    min_terminal_lines: Share = 0.0


class Repetition(Table):
    """Documents that repeat themselves are dropped: the shares that Gopher allows at most
    (arXiv:2112.11446, table A1). ``top_ngrams``: characters in the most frequent n-gram;
    ``duplicate_ngrams``: characters in n-grams that occurred before."""

    duplicate_lines: Share = 0.3
    duplicate_paragraphs: Share = 0.3
    duplicate_line_characters: Share = 0.2
    duplicate_paragraph_characters: Share = 0.2
    top_ngrams: dict[Annotated[int, Within(ge=1, le=20)], Share] = field(
        default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16}
    )
    duplicate_ngrams: dict[Annotated[int, Within(ge=1, le=20)], Share] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )


class Symbols(Table):
    """Documents of more symbols than text are dropped: the first five as Gopher has them (hash
    signs and ellipses to words, lines that start with a bullet or end in an ellipsis, words with
    a letter in them), ``max_share`` as the share of characters but spaces that are neither
    letters, marks nor digits."""

    max_hashes: NotNegative = 0.1
    max_ellipses: NotNegative = 0.1
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_words_with_letters: Share = 0.8
    max_share: Share = 0.5


class BadWords(Table):
    """Words and phrases (``words``, and ``files`` with one a line) that are not wanted.

    Whole words, case aside; a document with more than ``max_count`` of them is dropped, or with
    "drop_line" each line that has one, or with "mask" each becomes ``<...>``.
    """

    words: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    action: Literal["drop", "drop_line", "mask"] = "drop"
    max_count: Count = 0

    def _check(self) -> None:
        if not self.words and not self.files:
            raise ValueError("words or files is needed: there is no list of our own")
        if self.max_count and self.action != "drop":
            raise ValueError('max_count goes with action = "drop"')


class Keywords(Table):
    """Documents stuffed with keywords are dropped: more than ``max_density`` of their words are
    words of the list, or more than ``max_top_word`` of them one and the same word of at least
    four letters."""

    words: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    max_density: Share = 0.05
    max_top_word: Share = 0.2


class Scripts(Table):
    """Documents with less than ``min_share`` of their letters in the scripts ``keep`` are dropped.
    Names as Unicode has them: "Latin", "Han", "Devanagari"."""

    keep: Annotated[list[str], Within(entries=1)]
    min_share: Share = 0.5


class Languages(Table):
    """Documents with less than ``min_share`` of their text in the languages ``keep`` are dropped.
    ISO 639 codes: "en", "zh", "sw"."""

    keep: Annotated[list[str], Within(entries=1)]
    min_share: Share = 0.65


class Perplexity(Table):
    """Documents that a model finds too odd (or, with ``min``, too easy) are dropped.

    Bits per byte over the first ``characters`` of the document. At least one of ``min``, ``max``.
    """

    model: str
    min: NotNegative | None = None
    max: NotNegative | None = None
    characters: Positive = 2000

    def _check(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("one of min and max (bits per byte) is needed")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError("min must be less than max")


class Clean(Table):
    """The rules, in the order in which they are applied; those left out are off.

    First what edits (markup, urls, personal, lines, repeated, bad words where they edit), then what
    drops whole documents. ``samples``: how many examples each rule keeps.
    """

    markup: Markup | None = None
    urls: Urls | None = None
    personal: Personal | None = None
    lines: Lines | None = None
    repeated: Repeated | None = None
    bad_words: BadWords | None = None
    length: Length | None = None
    symbols: Symbols | None = None
    repetition: Repetition | None = None
    keywords: Keywords | None = None
    scripts: Scripts | None = None
    languages: Languages | None = None
    perplexity: Perplexity | None = None
    samples: Count = 3


class NearDuplicates(Table):
    """Documents like an earlier one are dropped: Jaccard similarity of their sets of word n-grams
    at least ``similarity``. MinHash finds the candidates (``bands`` of ``rows`` hashes), the exact
    sets decide."""

    similarity: Annotated[float, Within(gt=0, le=1)] = 0.8
    ngram: Positive = 5
    bands: Positive = 20
    rows: Positive = 5


class Decontaminate(Table):
    """Documents that share an n-gram of ``ngram`` words with an evaluation file are dropped, or the
    passages cut out with ``margin`` characters on either side.

    An item's text of fewer words counts as a whole, from ``min_words`` words on.
    """

    files: Annotated[list[str], Within(entries=1)]
    ngram: Positive = 13
    min_words: Positive = 8
    action: Literal["drop", "cut"] = "drop"
    margin: Count = 200

    def _check(self) -> None:
        if self.min_words > self.ngram:
            raise ValueError(f"min_words = {self.min_words} is more than ngram = {self.ngram}")
