"""Near-duplicates planted in real text: how many are found, and how many finds are right.

    python benchmarks/near_duplicates.py [--data ../shared/data/pretrain] [--json OUT]
    python benchmarks/near_duplicates.py --datatrove

Of each corpus the documents of at least 50 words that have no near-duplicate among themselves, some
of them followed by a copy with words replaced, left out and put in at a random rate. The similarity
that counts is the exact Jaccard index of the sets of word 5-grams, computed here with Python's own
sets: of our words (a character where a script writes no spaces), and of what `str.split` gives.
Recall: of the copies of similarity >= 0.8, how many were dropped. Precision: of all documents
dropped, how many have that similarity to the one that stays for it. One process, one thread.

``--datatrove`` instead runs datatrove's MinHash with as many bands and rows on three of the corpora
as they are, beside ours: its English words need spaCy, so it gets `str.split` (faster) and sha1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.data.near import Found, near_duplicates, signatures
from flyweight.data.sources import Skipped, documents
from flyweight.data.words import words
from flyweight.spec.cleaning import NearDuplicates

DATA = Path(__file__).resolve().parents[2] / "shared/data/pretrain"
# Thousands of documents share a chunk, as in a build.
CHUNK = 256
Split = Callable[[str], list[str]]


def our_words(text: str) -> list[str]:
    """The words that `flyweight.data.words` finds, as text."""
    found = words([text])
    folded = (
        text[start:end]
        for start, end in zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    )
    return ["".join(unicodedata.normalize("NFKC", word).casefold()) for word in folded]


def jaccard(a: str, b: str, split: Split) -> float:
    one, other = (fivegrams(split(text)) for text in (a, b))
    return len(one & other) / max(1, len(one | other))


def fivegrams(tokens: list[str]) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}


def edited(text: str, rate: float, spaces: bool, rng: random.Random) -> str:
    """``text`` with one unit (word, or character) in 1 / ``rate`` replaced, dropped or doubled."""
    units = text.split(" ") if spaces else list(text)
    out: list[str] = []
    for unit in units:
        if rng.random() >= rate:
            out.append(unit)
            continue
        kind = rng.randrange(3)
        out += [[rng.choice(units)], [], [unit, rng.choice(units)]][kind]
    return (" " if spaces else "").join(out)


def corpora(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for file in sorted(folder.glob("*.jsonl*")):
        texts = [document.text for document in documents([str(file)], Skipped())]
        counts = words(texts).counts
        yield file.name.split(".")[0], [t for t, n in zip(texts, counts, strict=True) if n >= 50]


def find(texts: list[str], table: NearDuplicates, work: Path) -> tuple[Found, float, float]:
    """(what was found, seconds for the signatures, seconds for the rest)."""
    start = time.process_time()
    chunks = [signatures(texts[i : i + CHUNK], table) for i in range(0, len(texts), CHUNK)]
    file = work / "signatures.npy"
    np.save(file, np.concatenate(chunks, axis=1))
    signed = time.process_time()
    found = near_duplicates(table, [file], texts.__getitem__)
    return found, signed - start, time.process_time() - signed


def measure(texts: list[str], table: NearDuplicates, work: Path, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    first, _, _ = find(texts, table, work)
    texts = [text for text, drop in zip(texts, first.drop, strict=True) if not drop]
    spaces = sum(text.count(" ") for text in texts) > sum(map(len, texts)) / 20
    both, original = [], []
    for text in texts:
        both.append(text)
        original.append(-1)
        if rng.random() < 0.5:
            # n-grams of 5 that an edit spares: (1 - rate)^5; J is then from 1 down to about 0.4.
            copy = edited(text, rng.uniform(0, 0.1), spaces, rng)
            if copy != text:
                both.append(copy)
                original.append(len(both) - 2)
    order = list(range(len(both)))
    rng.shuffle(order)
    # Originals and copies in any order: whichever comes first stays.
    place = {old: new for new, old in enumerate(order)}
    shuffled = [both[old] for old in order]
    found, signing, deciding = find(shuffled, table, work)
    row: dict[str, Any] = {
        "documents": len(both),
        "bytes": sum(len(text.encode()) for text in both),
        "removed_before": int(first.drop.sum()),
        "sign_seconds": signing,
        "decide_seconds": deciding,
        "compared": found.compared,
    }
    for name, split in (("", our_words), ("_split", str.split)):
        pairs = [(place[o], place[c], both[o], both[c]) for c, o in enumerate(original) if o >= 0]
        alike = [(a, b) for a, b, x, y in pairs if jaccard(x, y, split) >= table.similarity]
        hit = sum(bool(found.drop[a] or found.drop[b]) for a, b in alike)
        dropped = np.flatnonzero(found.drop).tolist()
        right = sum(
            jaccard(shuffled[a], shuffled[int(found.of[a])], split) >= table.similarity
            for a in dropped
        )
        row |= {
            "planted": len(pairs),
            f"alike{name}": len(alike),
            f"found{name}": hit,
            "dropped": len(dropped),
            f"right{name}": right,
        }
    return row


def beside_datatrove(folder: Path, table: NearDuplicates, work: Path) -> None:
    """datatrove's four steps and ours on the same documents, and what each drops."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash as peer
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.disable("datatrove")
    names = ("fairytales_en", "tldr_pages_en", "picturebooks_en")
    files = [str(folder / f"{name}.jsonl.zst") for name in names]
    texts = [document.text for document in documents(files, Skipped())]
    size = sum(len(text.encode()) for text in texts) / 1e6

    class Spaces:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    peer.load_word_tokenizer = lambda language: Spaces()
    config = peer.MinhashConfig(
        n_grams=table.ngram,
        num_buckets=table.bands,
        hashes_per_bucket=table.rows,
        hash_config=HashConfig(hash_fc="sha1"),
    )

    def given() -> Iterator[Document]:
        return (Document(text=text, id=str(i)) for i, text in enumerate(texts))

    start = time.process_time()
    signatures_at, buckets_at, remove_at = (str(work / each) for each in ("s", "b", "r"))
    peer.MinhashDedupSignature(output_folder=signatures_at, config=config).run(given(), 0, 1)
    signed = time.process_time()
    for band in range(table.bands):
        buckets = peer.MinhashDedupBuckets(signatures_at, buckets_at, config=config)
        buckets.run(None, band, table.bands)
    peer.MinhashDedupCluster(buckets_at, remove_at, config=config).run(None, 0, 1)
    decided = time.process_time()
    left = {int(each.id) for each in peer.MinhashDedupFilter(remove_at).run(given(), 0, 1)}
    theirs = set(range(len(texts))) - left
    found, signing, deciding = find(texts, table, work)
    ours = set(np.flatnonzero(found.drop).tolist())
    print(f"{len(texts)} documents, {size:.1f} MB")
    print(
        f"datatrove: {size / (signed - start):.1f} MB/s signed, {decided - signed:.2f} s to decide"
    )
    print(f"ours:      {size / signing:.1f} MB/s signed, {deciding:.2f} s to decide")
    print(f"dropped by both {len(ours & theirs)}, by ours alone {len(ours - theirs)}", end=", ")
    alone = sorted(theirs - ours)
    sets = [fivegrams(our_words(text)) for text in texts]
    nearest = []
    for one in alone:
        others = (other for i, other in enumerate(sets) if i != one)
        nearest.append(max(len(sets[one] & o) / max(1, len(sets[one] | o)) for o in others))
    print(
        f"by datatrove alone {len(alone)}, of which {sum(n >= table.similarity for n in nearest)}"
    )
    print(f"have a document of similarity >= {table.similarity}; their median: ", end="")
    print(f"{float(np.median(nearest or [0])):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--datatrove", action="store_true")
    arguments = parser.parse_args()
    table = NearDuplicates()
    if arguments.datatrove:
        with tempfile.TemporaryDirectory() as work:
            beside_datatrove(arguments.data, table, Path(work))
        return
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, texts in corpora(arguments.data):
            rows[name] = measure(texts, table, Path(work), arguments.seed)
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    rows["all"] = total
    print(f"{'corpus':<30} documents planted  >=0.8  recall  precision   (str.split)  docs/s  MB/s")
    for name, row in rows.items():
        seconds = row["sign_seconds"] + row["decide_seconds"]
        print(
            f"{name:<30} {row['documents']:>9} {row['planted']:>7} {row['alike']:>6}"
            f" {share(row['found'], row['alike']):>7} {share(row['right'], row['dropped']):>10}"
            f" {share(row['found_split'], row['alike_split']):>7}"
            f" {share(row['right_split'], row['dropped']):>6}"
            f" {row['documents'] / seconds:>7.0f} {row['bytes'] / seconds / 1e6:>5.1f}"
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"compared {total['compared']} pairs; peak memory {memory:.0f} MiB, the text among it")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "peak_mib": memory}, indent=1) + "\n")


def share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "-"


if __name__ == "__main__":
    main()
