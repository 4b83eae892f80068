"""How often the languages rule is right, on the texts of ../shared/data that say their language.

    python benchmarks/language_identification.py [--data ../shared/data]

A document counts for the language of most of its windows (`flyweight.data.language`). Picture books
in 26 languages, Wikipedia passages in 11 (XQuAD), Russian stories, Chinese encyclopaedia and verse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flyweight.data.language import languages
from flyweight.data.unpack import chunks, lines

DATA = Path(__file__).resolve().parents[2] / "shared/data"
BOOKS = ("picturebooks_african_fr_pt", "picturebooks_indic", "picturebooks_en")
# (file, language, every so many documents)
OTHERS = (("tinystories_ru", "ru", 40), ("wiki_zh", "zh", 10), ("poetry_zh", "zh (verse)", 100))


def rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in lines(chunks(file), 1 << 24):
        if line:
            yield json.loads(line)


def labelled(data: Path) -> Iterator[tuple[str, str]]:
    """(language, text)."""
    for book in BOOKS:
        for row in rows(data / f"pretrain/{book}.jsonl.zst"):
            yield row["lang"], row["text"]
    for name, language, every in OTHERS:
        for number, row in enumerate(rows(data / f"pretrain/{name}.jsonl.zst")):
            if number % every == 0:
                yield language, row["text"]
    seen: set[str] = set()
    for row in rows(data / "eval/xquad.jsonl.zst"):
        if row["context"] not in seen:
            seen.add(row["context"])
            yield row["lang"], row["context"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    seconds, size = 0.0, 0
    for language, text in labelled(parser.parse_args().data):
        start = time.process_time()
        found = Counter(languages(text)).most_common(1)
        seconds += time.process_time() - start
        size += len(text.encode())
        told[language][found[0][0] if found else "none"] += 1
    right = 0
    for language, counts in sorted(told.items()):
        right += counts[language[:2] if "(" in language else language]
        print(f"{language:<12} {counts.total():>5}  {dict(counts.most_common(4))}")
    total = sum(counts.total() for counts in told.values())
    print(f"right {right} of {total}, {right / total:.4f}")
    print(f"{total / seconds:.0f} documents and {size / seconds / 1e6:.1f} MB a second and core")


if __name__ == "__main__":
    main()
