"""What a dataset is made of: the text that is read, and what is held out of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flyweight.spec.table import Table

Share = Annotated[float, Field(ge=0, le=1)]


class Data(Table):
    """Which text is read, and what of it is kept from training.

    ``train``: files, folders or globs; or one dataset already built (a folder with dataset.json).
    ``held_out``: the share of whole documents set aside by a stable hash of their name, or a list
    of files. A corpus of one document holds out its tail.
    """

    train: list[str] = Field(default_factory=list)
    held_out: Share | list[str] = 0.1
