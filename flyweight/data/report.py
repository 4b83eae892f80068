"""What a build read, dropped and kept, for people (Markdown) and for dataset.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from flyweight.data.decontaminate import passed_over
from flyweight.data.document import Skipped
from flyweight.data.settle import Settled
from flyweight.data.tally import Tally
from flyweight.data.work import Work
from flyweight.spec.data import Data

_REASONS = {
    "empty": "empty",
    "duplicates": "an exact copy of another document",
    "held_out": "equal to a held-out document",
    "near_duplicates": "near to another document",
}


@dataclass
class SourceReport:
    """One source: documents and bytes as they were read, and as they stayed; what became of the
    others, by reason; and what the cleaning rules did."""

    documents: int = 0
    bytes: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    tally: Tally = field(default_factory=Tally)


# Rows of the page's tables of examples.
_SHOWN = 20


@dataclass
class Report:
    """``sources`` by name (the held-out files' is "held_out"), and what was not read; ``near``:
    the first near-duplicates, as (dropped, kept, similarity); ``decontaminated``: what is said of
    evaluation items that could not be looked for, None where none were looked for at all."""

    sources: dict[str, SourceReport]
    skipped: Skipped
    held_out: frozenset[str]
    near: list[tuple[str, str, float]] = field(default_factory=list)
    decontaminated: list[str] | None = None

    @classmethod
    def of(cls, work: Work, settled: Settled) -> Report:
        """The report of a build of which all is cleaned and settled."""
        plan, skipped = work.plan, Skipped()
        sources: dict[str, SourceReport] = {}
        for origin in plan.origins:
            fresh = SourceReport(tally=Tally(samples=work.samples))
            sources.setdefault(origin["source"], fresh)
            skipped.merge(Skipped.from_dict(origin["passed"]))
        for number, unit in enumerate(plan.units):
            result = work.result("read", number)
            mine = sources[plan.origins[unit.origin]["source"]]
            mine.documents += result["documents"]
            mine.bytes += result["bytes"]
            skipped.merge(Skipped.from_dict(result["skipped"]))
        for part in range(len(work.parts)):
            result = work.result("clean", part)
            mine = sources[work.origin(part)["source"]]
            mine.kept += result["kept"]
            mine.dropped["empty"] += result["empty"]
            mine.tally.merge(Tally.from_dict(result["tally"]))
        for source, dropped in settled.dropped.items():
            for reason, count in dropped.items():
                sources[source].dropped[reason] += count
                sources[source].kept -= count
        named = frozenset(origin["source"] for origin in plan.origins if origin["held_out"])
        said = passed_over(work.evaluation) if work.data.decontaminate is not None else None
        return cls(sources, skipped, named, settled.near, said)

    def cleaned(self) -> dict[str, int]:
        """Training documents that came in, and how many of them each reason dropped."""
        mine = [found for name, found in self.sources.items() if name not in self.held_out]
        counts = {reason: sum(found.dropped[reason] for found in mine) for reason in _REASONS}
        return {"documents": sum(found.documents for found in mine), **counts}

    def tally(self) -> Tally:
        """What the cleaning rules did to all sources together."""
        whole = Tally(samples=max(found.tally.samples for found in self.sources.values()))
        for found in self.sources.values():
            whole.merge(found.tally)
        return whole

    def notices(self) -> list[str]:
        dropped = [
            f"dropped {count}: {_REASONS[reason]}"
            for reason, count in self.cleaned().items()
            if reason in _REASONS and count
        ]
        said = self.decontaminated or []
        return [*self.skipped.lines(), *dropped, *self.tally().lines(), *said]

    def notes(self, data: Data) -> dict[str, Any]:
        """What dataset.json says of the build."""
        return {
            "held_out": data.held_out,
            "skipped": dict(sorted(self.skipped.counts.items())),
            "encodings": dict(sorted(self.skipped.encodings.items())),
            "cleaned": self.cleaned(),
            "rules": {
                rule: {"dropped": count.dropped, "edited": count.edited, "found": count.found}
                for rule, count in self.tally().rules.items()
            },
            "notices": self.notices(),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, for --json."""
        return {
            "sources": {
                name: {
                    "documents": found.documents,
                    "bytes": found.bytes,
                    "kept": found.kept,
                    "dropped": found.dropped,
                    "rules": found.tally.to_dict()["rules"],
                }
                for name, found in self.sources.items()
            },
            "skipped": self.skipped.to_dict(),
            "near_duplicates": self.near,
            "contamination": [asdict(finding) for finding in self.tally().findings],
            "notices": self.notices(),
        }

    def contamination(self) -> str | None:
        """Which evaluation items were found in which documents, as JSON lines; None where none
        were looked for."""
        if self.decontaminated is None:
            return None
        rows = (json.dumps(asdict(row), ensure_ascii=False) for row in self.tally().findings)
        return "".join(f"{row}\n" for row in rows)

    def markdown(self, name: str) -> str:
        """The report as a page."""
        lines = [
            f"# The dataset {name}",
            "",
            "| source | documents | bytes | kept | " + " | ".join(_REASONS) + " | by rules |",
            "| --- |" + " ---: |" * (len(_REASONS) + 4),
        ]
        for source, found in self.sources.items():
            rules = sum(count.dropped for count in found.tally.rules.values())
            counts = [found.documents, found.bytes, found.kept, *found.dropped.values(), rules]
            lines.append(f"| {_cell(source)} | " + " | ".join(f"{n:,}" for n in counts) + " |")
        if self.skipped.lines():
            lines += ["", "## What was not read", ""]
            lines += [f"- {_cell(line)}" for line in self.skipped.lines()]
        for source, found in self.sources.items():
            if found.tally.rules:
                lines += ["", f"## What the rules did to {_cell(source)}", ""]
                lines += _rules(found.tally)
        if self.near:
            lines += ["", "## Near-duplicates, the first", ""]
            lines += ["| dropped | like | similarity |", "| --- | --- | ---: |"]
            lines += [f"| {_cell(gone)} | {_cell(kept)} | {j:.3f} |" for gone, kept, j in self.near]
        lines += self._found_items()
        return "\n".join(lines) + "\n"

    def _found_items(self) -> list[str]:
        tally = self.tally()
        if not tally.findings:
            return [] if self.decontaminated is None else ["", *self.decontaminated]
        total = len(tally.findings) + tally.findings_left_out
        lines = ["", "## Evaluation items found", "", f"{total:,} in all, in contamination.jsonl"]
        lines[-1] += f" the first {len(tally.findings):,}." if tally.findings_left_out else "."
        lines += ["", "| document | file | item | n-grams | passage |"]
        lines += ["| --- | --- | --- | ---: | --- |"]
        for row in tally.findings[:_SHOWN]:
            cells = [row.document, row.file, row.item, str(row.ngrams), row.passage]
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return [*lines, *(["", *self.decontaminated] if self.decontaminated else [])]


def _rules(tally: Tally) -> list[str]:
    lines = [
        "| rule | dropped | edited | found | lines less | characters less |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rule, count in tally.rules.items():
        numbers = (count.dropped, count.edited, count.found, count.lines, count.characters)
        lines.append(f"| {rule} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    for rule, count in tally.rules.items():
        if count.samples:
            lines += ["", f"Examples of {rule}:", ""]
            lines += [f"- {_cell(name)}: `{_code(shown)}`" for name, shown in count.samples]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", "⏎")
