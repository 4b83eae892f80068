"""A run's schedules, drawn for the whole of it, beside what its ledger says was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from flyweight.report import charts
from flyweight.report.record import RunRecord
from flyweight.report.wording import short
from flyweight.spec.errors import ConfigurationError

# A line of a chart needs no more points; steps are told apart to a thousandth of the run.
_POINTS = 1000


def schedule_charts(record: RunRecord) -> Iterator[str]:
    """Charts of learning rate, context, batch, dropout and data mix: the rate always, the others
    where they change. A run whose configuration cannot be read has the ledger's values alone.
    """
    done = record.steps
    planned = _planned(record)
    x = planned.pop("step", [])
    mix = [float(line.get("mix") == "decay") for line in record.ledger]
    drawn: list[tuple[str, str, str, list[float], Callable[[float], str] | None]] = [
        ("learning rate", "Learning rate", "of the matrices", record.column("learning_rate"), None),
        ("context", "Context", "tokens a row", record.column("context"), short),
        ("batch", "Batch", "tokens a step", _differences(record.column("tokens")), short),
        ("dropout", "Dropout", "share", record.column("dropout"), None),
        ("mix", "Data mix", "which of the two", mix, _mix_name),
    ]
    for name, title, unit, values, show in drawn:
        plan = planned.get(name, [])
        # A line that was never measured is no line; one that never moves says nothing new.
        known = [v for v in [*plan, *values] if math.isfinite(v)]
        if not known or (name != "learning rate" and min(known) == max(known)):
            continue
        series = [charts.Series("so far", done, values, 4)]
        if plan:
            series.insert(0, charts.Series("planned", x, plan, 4, "raw"))
        yield charts.line_chart(series, title=title, unit=unit, show=show)


def _planned(record: RunRecord) -> dict[str, Sequence[float]]:
    """Values by name over the whole run, at some of its steps; nothing where it is not known."""
    # The numbers are numpy's; the command line asks this room for `--help` too.
    from flyweight.spec.run import Train
    from flyweight.train.schedule import Plan

    data, train = record.settings.get("data"), record.settings.get("train")
    if not isinstance(train, dict) or not record.total_steps:
        return {}
    mix = data.get("mix") if isinstance(data, dict) else None
    try:
        spec = Train.parse(train)
    except ConfigurationError:
        return {}
    plan = Plan(spec, switch=isinstance(mix, dict) and bool(mix.get("decay")))
    apart = max(1, plan.steps // _POINTS)
    steps = [*range(0, plan.steps - 1, apart), plan.steps - 1]
    moments = [plan.at(step) for step in steps]
    return {
        "step": [step + 1 for step in steps],
        "learning rate": [moment.rate for moment in moments],
        "context": [moment.context for moment in moments],
        "batch": [moment.windows * spec.context for moment in moments],
        "dropout": [moment.dropout for moment in moments],
        "mix": [float(moment.mix == "decay") for moment in moments],
    }


def _differences(total: list[float]) -> list[float]:
    return [b - a for a, b in zip([0.0, *total], total, strict=False)]


def _mix_name(value: float) -> str:
    return "the decay's" if value > 0.5 else "the main one"
