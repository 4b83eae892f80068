"""How much evaluation text the corpora of ../shared/data hold, and how fast that is found.

    python benchmarks/decontamination.py [--data ../shared/data]

All files of eval/ against each corpus of pretrain/, by 13-grams of words, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from flyweight.data.decontaminate import Decontaminator, passed_over
from flyweight.data.document import Skipped
from flyweight.data.sources import documents
from flyweight.data.tally import Tally
from flyweight.spec.cleaning import Decontaminate

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    table = Decontaminate(files=[str(data / "eval")])
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        Decontaminator.prepare(table, Path(folder))
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        print(f"the index: {time.process_time() - start:.1f} s, {size:.0f} MB")
        print("\n".join(passed_over(Path(folder))))
        stage = Decontaminator.open(table, Path(folder))
        for file in sorted((data / "pretrain").glob("*.jsonl*")):
            texts = list(documents([str(file)], Skipped()))
            tally = Tally()
            start = time.process_time()
            dropped = len(texts) - sum(1 for _ in stage(texts, tally))
            seconds = time.process_time() - start
            size = sum(len(document.text.encode()) for document in texts) / 1e6
            found = dict(Counter(finding.file for finding in tally.findings).most_common(3))
            print(
                f"{file.name:<40} {len(texts):>6} documents, {dropped:>3} contaminated,"
                f" {size / seconds:>5.1f} MB/s {found or ''}"
            )


if __name__ == "__main__":
    main()
