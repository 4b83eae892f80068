"""What a dataset is made of: its sources, and what is held out of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flyweight.spec.cleaning import Clean, Decontaminate, NearDuplicates
from flyweight.spec.table import Table

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Source(Table):
    """Text of one kind under a name of its own: ``[data.sources.NAME]``.

    ``paths``: files, folders, globs, or "-" for standard input; or ``huggingface``: a dataset's
    name, or the folder that its `save_to_disk` wrote, with ``subset`` and ``split``. ``format``
    where a file's name does not say it. ``text`` and ``id``: the fields or columns of a row.
    ``ignore``: patterns as in .gitignore, besides those of the folders' own .gitignore files.
    """

    paths: list[str] = Field(default_factory=list)
    huggingface: str | None = None
    subset: str | None = None
    split: str = "train"
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "html"] = "auto"
    text: str = "text"
    id: str = "id"
    ignore: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> Source:
        if bool(self.paths) == (self.huggingface is not None):
            raise ValueError("a source has either `paths` or `huggingface`")
        if "-" in self.paths and len(self.paths) > 1:
            raise ValueError('"-" (standard input) is a source of its own')
        return self


class Data(Table):
    """Which text is read, and what of it is kept from training.

    ``train``: files, folders or globs; or one dataset already built (a folder with dataset.json).
    ``sources``: the same under names of their own, with settings. ``held_out``: the share of
    whole documents set aside by a stable hash of their name, or a list of files. A corpus of one
    document holds out its tail. ``on_error``: whether what is broken stops the build or is
    counted and skipped. ``longest_document`` in bytes: more than that is broken. ``workers``:
    processes (default: the machine's cores); the dataset is the same for any number of them.
    ``clean``, ``decontaminate`` and ``near_duplicates`` are off unless written.
    """

    train: list[str] = Field(default_factory=list)
    sources: dict[str, Source] = Field(default_factory=dict)
    held_out: Share | list[str] = 0.1
    on_error: Literal["stop", "skip"] = "stop"
    longest_document: Positive = 64 << 20
    workers: Positive | None = None
    clean: Clean | None = None
    decontaminate: Decontaminate | None = None
    near_duplicates: NearDuplicates | None = None

    @model_validator(mode="after")
    def _check(self) -> Data:
        if twice := sorted(set(self.train) & set(self.sources)):
            raise ValueError(f"`{twice[0]}` is in `train` and a name in `sources`")
        return self
