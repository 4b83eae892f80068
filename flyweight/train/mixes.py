"""The batches of a run: of its mix of sources, and of another from the decay of the rate on."""

from __future__ import annotations

from flyweight.data.batches import Batches
from flyweight.data.mix import weights_of
from flyweight.data.shards import Dataset
from flyweight.spec.run import RunSpec
from flyweight.train.schedule import Plan


def mixes(spec: RunSpec, dataset: Dataset) -> tuple[Batches, Batches | None]:
    """(the run's batches, those of the decay where data.mix has one).

    The decay's go on in each source where the others stop; before ``train.steps`` is known, they
    begin at each one's beginning.
    """
    train, table = spec.train, spec.data.mix
    common = (dataset, train.context, train.batch_tokens, spec.seed)
    if table is None:
        return Batches(*common), None
    sizes = dict(dataset.train.sources)
    main = Batches(*common, mix=weights_of(table, sizes))
    if table.decay is None:
        return main, None
    after = None
    if train.steps is not None:
        plan = Plan(train, switch=True)
        after = main.counts(int(plan.before[plan.decay_start]))
    return main, Batches(*common, mix=weights_of(table.decay, sizes), after=after)
