"""What the commands that train share: the view, the samples, the last words."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from flyweight.data.build import Progress
    from flyweight.data.shards import Dataset
    from flyweight.files.run import RunFolder
    from flyweight.report.live import View
    from flyweight.train.state import TrainState

SAMPLE_TOKENS = 160
SAMPLE_TEMPERATURE = 0.7


@contextmanager
def watched(seen: bool = True) -> Iterator[tuple[View, Progress]]:
    """A view on standard error, and a progress callback for building data; nothing is shown
    unless ``seen``.
    """
    from flyweight.cli.data_build import progress
    from flyweight.report.live import view_for

    # Only the first of a job's processes is seen.
    with view_for(None if seen else io.StringIO(), quiet=not seen) as view:
        yield view, progress()


def free_folder(path: Path) -> Path:
    """``path``, or ``path-2``, ``path-3``, ... where it exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def prompts_from(dataset: Dataset, count: int, length: int = 48) -> list[str]:
    """Beginnings for Python's library; else lines of held-out documents, cut at a word."""
    from flyweight.data.sources import STANDARD_LIBRARY
    from flyweight.measure.bits import sample

    if list(dataset.record["sources"]) == [STANDARD_LIBRARY]:
        return ["def read_", "class Test", "import "][:count]

    documents, _ = sample(dataset.held_out.texts(dataset.tokenizer), 1 << 20)
    prompts = []
    for _, raw in documents:
        text = raw.decode("utf-8", errors="ignore").lstrip()
        # A line from the middle says more than a licence's first words.
        lines = [line for line in text[len(text) // 3 :].splitlines() if len(line.strip()) > 15]
        if lines:
            head = lines[0][:length]
            prompts.append(head[: max(head.rfind(" ") + 1, length // 2)].rstrip() or head)
        if len(prompts) == count:
            break
    return prompts or [""]


def sample_maker() -> Callable[[TrainState, RunFolder], dict[str, Any]]:
    """A function that samples from the model in training: the line that samples.jsonl gets."""
    prompt: list[str] = []

    def make(state: TrainState, run: RunFolder) -> dict[str, Any]:
        from flyweight.model.runtime import TorchModel
        from flyweight.train.start import open_dataset

        dataset = open_dataset(run)
        if not prompt:
            prompt.extend(prompts_from(dataset, 1))
        begin = time.perf_counter()
        model = TorchModel(str(run.path), state.model, dataset.tokenizer)
        text = model.generate(
            prompt[0], max_tokens=SAMPLE_TOKENS, temperature=SAMPLE_TEMPERATURE, seed=state.step
        )
        state.model.train()
        seconds = round(time.perf_counter() - begin, 3)
        return {"step": state.step, "prompt": prompt[0], "text": text, "seconds": seconds}

    return make


def sampler(view: View) -> Callable[[TrainState, RunFolder, Any], None]:
    """A function that samples from the model in training and records it in samples.jsonl."""
    make = sample_maker()

    def take(state: TrainState, run: RunFolder, _: Any) -> None:
        line = make(state, run)
        with open(run.samples, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        view.sample(state.step, line["prompt"], line["text"])

    return take


def finish(run: RunFolder, as_json: bool) -> None:
    """Write the page; print the run's folder, or its figures as JSON."""
    from flyweight.report.page import write_report

    page = write_report(run.path)
    last = run.read_ledger()[-1]
    if as_json:
        keys = ("step", "tokens", "bytes", "loss", "bits_per_byte")
        figures = {"run": str(run.path), "report": str(page), **{k: last[k] for k in keys}}
        typer.echo(json.dumps(figures))
        return
    typer.echo(run.path)
    print(
        f"{last['step']} steps, {last['bytes']:,} bytes of text, training at"
        f" {last['bits_per_byte']:.3f} bits per byte\n"
        f"picture:  {page}\n"
        f"measure:  flyweight eval {run.path}\n"
        f"talk:     flyweight generate {run.path} PROMPT",
        file=sys.stderr,
    )


def evaluate_run(
    run: RunFolder, most_bytes: int, view: View | None = None, step: int | None = None
) -> dict[str, Any]:
    """Bits per byte on the run's held-out documents, and the compressors'.

    Of the newest checkpoint, or of ``step``'s; that of the newest goes to evaluation.json.
    """
    from flyweight.files.atomic import write_text
    from flyweight.load import load
    from flyweight.measure.bits import bits_per_byte, compressors, sample
    from flyweight.spec.errors import FlyweightError
    from flyweight.train.start import open_dataset
    from flyweight.zoo import shapes

    dataset = open_dataset(run)
    documents, sampled = sample(dataset.held_out.texts(dataset.tokenizer), most_bytes)
    if not dataset.held_out.bytes:
        raise FlyweightError(
            f"{run.path} holds out no text (data.held_out = 0); name some to score: --text PATH"
        )
    newest = run.steps()[-1:]
    name = run.path if step is None else f"{run.path}@{step}"
    model = load(name, threads=run.spec().train.threads)
    if view is not None:
        size = sum(len(text) for _, text in documents)
        view.notice(f"measuring on {size:,} held-out bytes")
    held_out = bits_per_byte(model, documents, sampled).values()
    parameters = shapes.parameters(model.spec).unique
    result = {
        "held_out": held_out,
        "compressors": compressors(documents),
        "model": {"parameters": parameters, "step": newest[0] if step is None else step},
    }
    if step is None or [step] == newest:
        write_text(run.evaluation, json.dumps(result, indent=1) + "\n")
    return result


def evaluation_table(result: dict[str, Any]) -> str:
    """The model beside gzip, bzip2 and xz, in bits per byte."""
    held_out = result["held_out"]
    what = "a fixed sample of" if held_out["sampled"] else "all of"
    rows = [("this model", held_out["bits_per_byte"])]
    rows += [(row["name"], row["bits_per_byte"]) for row in result["compressors"]]
    lines = [
        f"bits per byte on {held_out['bytes']:,} bytes"
        f" ({what} {held_out['documents']} documents not trained on)"
    ]
    lines += [f"  {name:<12} {bits:6.3f}" for name, bits in rows]
    return "\n".join(lines)
