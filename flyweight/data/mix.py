"""How sources are mixed: which source the next window of a run is of.

Every PERIOD windows a source has a whole number of them, its share rounded, and they are spread
as evenly as they go: any stretch of a run has each source's share, within about one window. It
depends on nothing but the number of the window, so a batch is a function of its step still.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flyweight.spec import data as spec
from flyweight.spec.errors import ConfigurationError, CorruptFileError
from flyweight.spec.table import nearest

PERIOD = 1 << 16
Places = npt.NDArray[np.int64]


class Interleaving:
    """Windows of several sources in fixed proportions. ``weights``: sources by number."""

    def __init__(self, weights: Iterable[float]) -> None:
        self.rows = _rounded(np.array(list(weights), np.float64))

    @cached_property
    def _source(self) -> Places:
        """(PERIOD,) the source of each window: window i of n is due at (i + 1/2) / n."""
        number = np.repeat(np.arange(len(self.rows)), self.rows)
        due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in self.rows])
        return number[np.lexsort((number, due))]

    @cached_property
    def _places(self) -> list[Places]:
        """For each source the places of its windows within a period."""
        return [np.flatnonzero(self._source == source) for source in range(len(self.rows))]

    @cached_property
    def _before(self) -> Places:
        """(PERIOD,) how many windows of the same source a period has before each."""
        before = np.empty(PERIOD, np.int64)
        for places in self._places:
            before[places] = np.arange(len(places))
        return before

    def sources(self, index: Places) -> tuple[Places, Places]:
        """(source, running number within it) of the windows of these running numbers."""
        period, place = np.divmod(index, PERIOD)
        source = self._source[place]
        return source, period * self.rows[source] + self._before[place]

    def numbers(self, source: int, index: Places) -> Places:
        """The running numbers of a source's windows of these numbers within it."""
        period, before = np.divmod(index, int(self.rows[source]))
        return period * PERIOD + self._places[source][before]

    def counts(self, windows: int) -> Places:
        """(sources,) how many of the first ``windows`` windows each source has."""
        period, place = divmod(windows, PERIOD)
        part = np.bincount(self._source[:place], minlength=len(self.rows))
        return period * self.rows + part


def _rounded(weights: npt.NDArray[np.float64]) -> Places:
    """Shares of PERIOD as whole numbers, by largest remainder; what has a weight has at least 1."""
    exact = weights / weights.sum() * PERIOD
    rows = np.where(weights > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    left = PERIOD - int(rows.sum())
    if left > 0:
        by = np.argsort(np.where(weights > 0, rows - exact, np.inf), kind="stable")
        rows[by[:left]] += 1
    else:
        # The tiny ones were given what the largest now gives.
        rows[np.argmax(rows)] += left
    return rows


def weights_of(table: spec.Mix, tokens: Mapping[str, int]) -> dict[str, float]:
    """The weight of every source of a dataset. ``tokens``: the sources' sizes.

    Raises ConfigurationError for a source that there is not, or that the weights leave out.
    """
    where = table.file or "data.mix"
    check_names(table, list(tokens))
    table = inline(table)
    if table.weights is not None:
        if missing := sorted(tokens.keys() - table.weights.keys()):
            raise ConfigurationError(
                f"{where}: weights say nothing of `{missing[0]}`; 0 leaves a source out"
            )
        weights = {name: table.weights[name] for name in tokens}
    elif table.epochs is not None:
        weights = {name: table.epochs.get(name, 1.0) * size for name, size in tokens.items()}
    else:
        assert table.temperature is not None
        weights = {name: size ** (1 / table.temperature) for name, size in tokens.items()}
    if not sum(weights.values()):
        raise ConfigurationError(f"{where}: the weights of all sources are 0")
    return weights


def check_names(table: spec.Mix, sources: Sequence[str]) -> None:
    """Raises ConfigurationError where the mix names a source that there is not."""
    for part in filter(None, (table, table.decay)):
        known = inline(part)
        for name in [*(known.weights or {}), *(known.epochs or {})]:
            if name not in sources:
                hint = nearest(name, sorted(sources))
                raise ConfigurationError(f"{part.file or 'data.mix'}: no source `{name}`{hint}")


def inline(table: spec.Mix) -> spec.Mix:
    """The mix with the weights of its file in the file's place."""
    decay = table.decay and inline(table.decay)
    if table.file is None:
        return table.replace(decay=decay)
    file = Path(table.file).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        weights = values["weights"]
    except OSError as error:
        raise ConfigurationError(f"data.mix.file: {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{file} is no mix ({error!r}): a table `weights` of sources and shares is wanted"
        ) from None
    made = spec.Mix.parse({"weights": weights}, f"{file}")
    return made.replace(decay=decay)
