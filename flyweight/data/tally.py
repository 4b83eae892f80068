"""What each rule dropped or edited, counted, with a few examples: what a build and a dry run show.

Tallies of consecutive parts of a corpus, merged in order, equal the tally of the whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

_SHOWN = 200
_FINDINGS = 10_000


@dataclass
class Count:
    """One rule's: documents dropped and edited; characters and lines that went, those of dropped
    documents among them; things found (e-mail addresses, evaluation items); and some examples as
    (document, what was seen there)."""

    dropped: int = 0
    edited: int = 0
    characters: int = 0
    lines: int = 0
    found: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Finding:
    """An evaluation item found in a document: how many of its n-grams, and the first passage."""

    document: str
    file: str
    item: str
    ngrams: int
    passage: str


@dataclass
class Tally:
    """The counts of all rules, and of the evaluation items found where."""

    samples: int = 3
    documents: int = 0
    characters: int = 0
    rules: dict[str, Count] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    findings_left_out: int = 0

    def seen(self, text: str) -> None:
        """A document comes in."""
        self.documents += 1
        self.characters += len(text)

    def drop(self, rule: str, name: str, text: str, why: str) -> None:
        """``rule`` drops the document ``name``."""
        count = self._count(rule)
        count.dropped += 1
        count.characters += len(text)
        count.lines += text.count("\n") + 1
        self._sample(count, name, f"{why}: {text}")

    def edit(
        self, rule: str, name: str, before: str, after: str, lines: int, found: int, sample: str
    ) -> None:
        """``rule`` changed the text of ``name``: ``lines`` lines went, ``found`` things did."""
        count = self._count(rule)
        count.edited += 1
        # Masks may be longer than what they hide.
        count.characters += max(0, len(before) - len(after))
        count.lines += lines
        count.found += found
        self._sample(count, name, sample)

    def finding(self, finding: Finding) -> None:
        """An evaluation item was found; of the first ten thousand the record stays."""
        if len(self.findings) < _FINDINGS:
            self.findings.append(finding)
        else:
            self.findings_left_out += 1

    def merge(self, other: Tally) -> None:
        """Add ``other``, the tally of what comes after this one's documents."""
        self.documents += other.documents
        self.characters += other.characters
        for rule, theirs in other.rules.items():
            ours = self._count(rule)
            ours.dropped += theirs.dropped
            ours.edited += theirs.edited
            ours.characters += theirs.characters
            ours.lines += theirs.lines
            ours.found += theirs.found
            ours.samples = (ours.samples + theirs.samples)[: self.samples]
        for finding in other.findings:
            self.finding(finding)
        self.findings_left_out += other.findings_left_out

    def lines(self, samples: bool = False) -> list[str]:
        """One line for each rule, for a notice; with its examples below it, for a dry run."""
        lines = []
        for rule, count in self.rules.items():
            lines.append(f"{rule}: {_described(count)}")
            if samples:
                lines += [f"  {name}: {shown!r}" for name, shown in count.samples]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        tally = cls(**values)
        tally.rules = {
            rule: Count(**{**count, "samples": [(n, s) for n, s in count["samples"]]})
            for rule, count in values["rules"].items()
        }
        tally.findings = [Finding(**finding) for finding in values["findings"]]
        return tally

    def _count(self, rule: str) -> Count:
        return self.rules.setdefault(rule, Count())

    def _sample(self, count: Count, name: str, shown: str) -> None:
        if len(count.samples) < self.samples:
            more = "..." if len(shown) > _SHOWN else ""
            count.samples.append((name, shown[:_SHOWN] + more))


def _described(count: Count) -> str:
    parts = []
    if count.dropped:
        parts.append(f"dropped {count.dropped:,} document{'s' * (count.dropped != 1)}")
    if count.edited:
        parts.append(f"edited {count.edited:,}")
    if count.found:
        parts.append(f"found {count.found:,}")
    parts.append(f"{count.characters:,} characters and {count.lines:,} lines less")
    return ", ".join(parts)
