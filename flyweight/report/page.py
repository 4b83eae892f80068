"""RUN/report.html: a run on one self-contained page, from whatever its folder holds so far."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyweight.files.atomic import write_bytes
from flyweight.report import charts
from flyweight.report.record import RunRecord, read_run
from flyweight.report.schedules import schedule_charts
from flyweight.report.wording import duration, figure, finite, percent, short, visible, whole
from flyweight.spec.errors import FlyweightError

SAMPLES_SHOWN = 8  # spread over the run; the others stay folded


def write_report(run: Path) -> Path:
    """Write ``run``/report.html and return its path; an older page is replaced in one rename.

    Files that a young or interrupted run lacks are left out of the page. Raises FlyweightError
    where ``run`` is no run folder or the page cannot be written.
    """
    run = Path(run)
    if not run.is_dir():
        raise FlyweightError(f"no run folder at {run}; `flyweight train` or `quickstart` makes one")
    if not any((run / name).exists() for name in ("run.toml", "ledger.jsonl")):
        raise FlyweightError(
            f"{run} is no run folder: it has neither run.toml nor ledger.jsonl;"
            " give the folder that `flyweight train` or `quickstart` wrote"
        )
    page = render(read_run(run))
    target = run / "report.html"
    try:
        write_bytes(target, page.encode("utf-8"))
    except OSError as error:
        raise FlyweightError(
            f"cannot write {target}: {error.strerror or error}; make room or make the folder"
            " writable, then run `flyweight report` again"
        ) from None
    return target


def render(record: RunRecord) -> str:
    """The page, as HTML text that encodes as UTF-8: no request leaves it, nothing is run in it."""
    # Imported here: the command line asks this room for `--help` too.
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def clean(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible(value)

    pages = Environment(
        loader=PackageLoader("flyweight.report", ""),
        autoescape=True,
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown, folded = _spread(record.samples)
    return pages.get_template("page.html.j2").render(
        name=record.name,
        verdict=verdict(record),
        subtitle=_subtitle(record),
        unfinished=record.total_steps is not None and record.last_step < record.total_steps,
        run_path=shlex.quote(str(record.folder)),
        tiles=list(_tiles(record)),
        charts=[Markup(chart) for chart in _charts(record)],
        comparison=_comparison(record),
        held_out_note=_held_out_note(record),
        samples=shown,
        more_samples=folded,
        configuration=record.configuration,
        environment=list(_flat(record.environment)),
        data=list(_flat(record.data)),
        notes=record.notes,
        chart_css=Markup(charts.CSS),
    )


def verdict(record: RunRecord) -> str:
    """The run in one line: how good, after how long, and how that compares."""
    after = f"after {duration(record.seconds)} of training"
    bits = record.held_out_bits
    if bits is not None:
        line = f"{figure(bits, 2)} bits per byte on text it never saw, {after}"
        rivals = ", ".join(f"{name} {figure(value, 2)}" for name, value, _ in record.compressors)
        return f"{line}. On the same bytes: {rivals}." if rivals else f"{line}."
    bits = record.training_bits
    if bits is None:
        return "This run has only just begun: nothing is measured yet."
    steps = whole(record.last_step)
    if record.total_steps:
        steps += f" of {whole(record.total_steps)}"
    return (
        f"{figure(bits, 2)} bits per byte on its training text {after} ({steps} steps);"
        " held-out text is not measured yet."
    )


def _subtitle(record: RunRecord) -> str:
    """The model in a few words, as far as run.toml tells."""
    model = record.settings.get("model")
    text = record.settings.get("text")
    parts = []
    if record.parameters:
        parts.append(f"{short(record.parameters)} parameters")
    if isinstance(model, dict):
        if (depth := finite(model.get("depth"))) and (width := finite(model.get("width"))):
            parts.append(f"{depth:g} layers, {width:g} wide")
        if context := finite(model.get("context")):
            parts.append(f"context {whole(context)}")
    tokenizer = text.get("tokenizer") if isinstance(text, dict) else None
    kind = tokenizer.get("kind") if isinstance(tokenizer, dict) else tokenizer
    if isinstance(kind, str):
        parts.append(f"reads {kind}" if kind == "bytes" else f"tokenizer {kind}")
    return " · ".join(parts)


@dataclass(frozen=True)
class Tile:
    """A key figure: ``value`` large, ``name`` above, ``detail`` below."""

    name: str
    value: str
    detail: str = ""
    wide: bool = False


def _tiles(record: RunRecord) -> Iterator[Tile]:
    ledger, last = record.ledger, record.ledger[-1] if record.ledger else {}
    if record.held_out_bits is not None:
        yield Tile("Held-out text", figure(record.held_out_bits), "bits per byte")
    if record.training_bits is not None:
        yield Tile("Training text", figure(record.training_bits), "bits per byte, lately")
    if record.parameters:
        yield Tile("Parameters", short(record.parameters), whole(record.parameters))
    if ledger:
        total = record.total_steps
        yield Tile("Steps", whole(record.last_step), f"of {whole(total)}" if total else "")
        tokens, size = finite(last.get("tokens")), finite(last.get("bytes"))
        if size is not None:
            detail = f"{short(tokens)} tokens" if tokens is not None and tokens != size else ""
            yield Tile("Text read", short(size, "B"), detail)
        rates = sorted(v for v in record.column("bytes_per_second") if math.isfinite(v))
        if rates:
            yield Tile("Speed", short(rates[len(rates) // 2], "B") + "/s", "median")
        shares = sorted(v for v in record.column("matrix_share") if math.isfinite(v))
        if shares:
            yield Tile("Matrix peak", percent(shares[len(shares) // 2]), "median share")
        if spikes := record.spikes:
            went = f"{whole(len(spikes))} batch{'es' * (len(spikes) != 1)} left out"
            yield Tile("Spikes", whole(len({step for step, _ in spikes})), went)
        yield Tile("Time", duration(record.seconds), "in training steps")
    processor = _processor(record.environment)
    if processor:
        yield Tile("Processor", *processor, wide=True)


def _processor(environment: dict[str, Any]) -> tuple[str, str] | None:
    found = environment.get("processor") or environment.get("cpu")
    if isinstance(found, dict):
        found = found.get("name") or found.get("model")
    if not isinstance(found, str) or not found:
        return None
    threads = finite(environment.get("threads"))
    return found, f"{threads:g} thread{'s' * (threads != 1)}" if threads else ""


def _charts(record: RunRecord) -> Iterator[str]:
    """The curves that the ledger has values for, loss first."""
    steps = record.steps
    if not steps:
        return
    marks = [
        charts.Mark(name, value, 1 + i % 3)
        for i, (name, value, _) in enumerate(sorted(record.compressors, key=lambda row: -row[1]))
    ]
    if record.held_out_bits is not None:
        marks.append(charts.Mark("held out", record.held_out_bits, 0))

    def pair(key: str, color: int) -> list[charts.Series]:
        values = record.column(key)
        return [
            charts.Series("each step", steps, values, color, "raw"),
            charts.Series("smoothed", steps, charts.smooth(values), color),
        ]

    def has(key: str) -> bool:
        return any(math.isfinite(v) for v in record.column(key))

    if has("bits_per_byte"):
        yield charts.line_chart(
            pair("bits_per_byte", 0),
            title="Loss",
            unit="bits per byte, logarithmic",
            log=True,
            marks=marks,
            height=340,
            show=lambda v: figure(v, 2),
        )
    yield from schedule_charts(record)
    if has("gradient_norm"):
        yield charts.line_chart(
            pair("gradient_norm", 3),
            title="Gradient norm",
            unit="logarithmic",
            log=True,
        )
    if has("bytes_per_second"):
        yield charts.line_chart(
            pair("bytes_per_second", 2),
            title="Throughput",
            unit="bytes per second",
            show=lambda v: short(v, "B") + "/s",
        )
    if has("matrix_share"):
        shares = [100 * v for v in record.column("matrix_share")]
        yield charts.line_chart(
            [
                charts.Series("each step", steps, shares, 1, "raw"),
                charts.Series("smoothed", steps, charts.smooth(shares), 1),
            ],
            title="Share of the matrix peak",
            unit="per cent",
            show=lambda v: f"{v:.0f} %",
        )


def _comparison(record: RunRecord) -> list[dict[str, Any]]:
    """Rows of the table of model and compressors, best first, ``bar`` in per cent of the worst."""
    bits = record.held_out_bits
    if bits is None:
        return []
    size = finite(record.held_out.get("bytes"))
    rows = [("this model", bits, None if size is None else round(bits * size / 8), True)]
    rows += [(*row, False) for row in record.compressors]
    worst = max(row[1] for row in rows) or 1.0
    return [
        {
            "name": name,
            "bits": figure(value),
            "size": short(length, "B") if length is not None else "",
            "ratio": "" if own or not value else _against(bits / value),
            "bar": f"{100 * max(value, 0) / worst:.1f}",
            "own": own,
        }
        for name, value, length, own in sorted(rows, key=lambda row: row[1])
    ]


def _against(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "the model needs as much"
    return f"the model needs {abs(1 - ratio) * 100:.0f} % {'less' if ratio < 1 else 'more'}"


def _held_out_note(record: RunRecord) -> str:
    held_out, parts = record.held_out, []
    if size := finite(held_out.get("bytes")):
        documents = finite(held_out.get("documents"))
        of = f" of {whole(documents)} documents" if documents else ""
        sampled = ", a fixed sample of the held-out text" if held_out.get("sampled") is True else ""
        parts.append(f"Measured on {short(size, 'B')}{of} that were kept from training{sampled}.")
    if record.compressors and record.held_out_bits is not None:
        parts.append("The model's own size is not counted.")
    return " ".join(parts)


def _spread(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """SAMPLES_SHOWN samples spread evenly from the first to the last, and the others."""
    rows = [
        {
            "step": whole(finite(line["step"]) or 0),
            "prompt": str(line.get("prompt") or ""),
            "text": str(line.get("text") or ""),
        }
        for line in samples
    ]
    if len(rows) <= SAMPLES_SHOWN:
        return rows, []
    last = len(rows) - 1
    chosen = {round(k * last / (SAMPLES_SHOWN - 1)) for k in range(SAMPLES_SHOWN)}
    return [rows[i] for i in sorted(chosen)], [r for i, r in enumerate(rows) if i not in chosen]


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", shown
