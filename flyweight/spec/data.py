"""What a dataset is made of: its sources, what is held out of them, and how they are mixed."""

from __future__ import annotations

from typing import Any, Literal

from flyweight.spec.cleaning import Clean, Decontaminate, NearDuplicates
from flyweight.spec.reading import NotNegative, Positive, PositiveFloat, Share
from flyweight.spec.table import Table, field


class Source(Table):
    """Text of one kind under a name of its own: ``[data.sources.NAME]``.

    ``paths``: files, folders, globs, or "-" for standard input; or ``huggingface``: a dataset's
    name, or the folder that its `save_to_disk` wrote, with ``subset`` and ``split``, and
    ``revision`` (a commit, branch or tag; a branch may move between two builds). ``format`` where
    a file's name does not say it. ``text`` and ``id``: the fields or columns of a row.
    ``ignore``: patterns as in .gitignore, besides those of the folders' own .gitignore files.
    """

    paths: list[str] = field(default_factory=list)
    huggingface: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "html"] = "auto"
    text: str = "text"
    id: str = "id"
    ignore: list[str] = field(default_factory=list)

    def _check(self) -> None:
        if bool(self.paths) == (self.huggingface is not None):
            raise ValueError("a source has either `paths` or `huggingface`")
        if "-" in self.paths and len(self.paths) > 1:
            raise ValueError('"-" (standard input) is a source of its own')


class Mix(Table):
    """How much of each source a batch holds; one of these says it.

    ``weights``: shares of the tokens, by source (they need not add up to 1; 0 leaves it out).
    ``temperature`` T: shares in proportion to size ** (1 / T); 1 is by size, more is more even.
    ``epochs``: how often each source is read while one that is not named is read once.
    ``file``: TOML or JSON with a table ``weights``, as mixture laws write it.
    ``decay``: the mix from the step at which the learning rate begins its decay (MiniCPM,
    arXiv:2404.06395, section 4.2); a source of weight 0 until then is only read there.
    """

    weights: dict[str, NotNegative] | None = None
    temperature: PositiveFloat | None = None
    epochs: dict[str, NotNegative] | None = None
    file: str | None = None
    decay: Mix | None = None

    def _check(self) -> None:
        kinds = ("weights", "temperature", "epochs", "file")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(kinds)} is wanted, {' and '.join(given) or 'none'} is given"
            )
        if self.decay is not None and self.decay.decay is not None:
            raise ValueError("the mix of the decay has no decay of its own")


class Executor(Table):
    """Who does the work: this machine's cores, or datatrove's executors (an extra, `cluster`).

    ``options`` go to datatrove's executor as they are: a Slurm job's ``partition`` and ``time``,
    ``sbatch_args``, ... ``poll`` seconds between looks at what a Slurm job has done.
    """

    kind: Literal["local", "datatrove", "slurm", "ray"] = "local"
    options: dict[str, Any] = field(default_factory=dict)
    poll: PositiveFloat = 10.0


class Data(Table):
    """Which text is read, and what of it is kept from training.

    ``train``: files, folders or globs; or one dataset already built (a folder with dataset.json).
    ``sources``: the same under names of their own, with settings. ``held_out``: the share of
    whole documents set aside by a stable hash of their name, or a list of files. A corpus of one
    document holds out its tail. ``on_error``: whether what is broken stops the build or is
    counted and skipped. ``longest_document`` in bytes: more than that is broken. ``mix`` changes
    the order alone: a dataset need not be built again for another. ``workers``: processes
    (default: the machine's cores); the dataset is the same for any number of them. ``clean``,
    ``decontaminate`` and ``near_duplicates`` are off unless written.
    """

    train: list[str] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    held_out: Share | list[str] = 0.1
    on_error: Literal["stop", "skip"] = "stop"
    longest_document: Positive = 64 << 20
    mix: Mix | None = None
    workers: Positive | None = None
    executor: Executor = Executor()
    clean: Clean | None = None
    decontaminate: Decontaminate | None = None
    near_duplicates: NearDuplicates | None = None

    def _check(self) -> None:
        if twice := sorted(set(self.train) & set(self.sources)):
            raise ValueError(f"`{twice[0]}` is in `train` and a name in `sources`")
