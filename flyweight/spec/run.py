"""What a run is: the text, the data, the training, and the model they make."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from flyweight.spec.data import Data as Data
from flyweight.spec.model import ModelSpec
from flyweight.spec.reading import (
    Before,
    Count,
    NotNegative,
    Positive,
    PositiveFloat,
    Share,
    Within,
)
from flyweight.spec.table import Table, field


def _short_tokenizer(value: Any) -> Any:
    """``tokenizer = "bytes"`` or ``tokenizer = "path/to/tokenizer.json"``."""
    if value in ("bpe", "unigram"):
        raise ValueError(
            f'"{value}" needs the size of its vocabulary: {{ kind = "{value}", size = 4096 }}'
        )
    if isinstance(value, str):
        return {"kind": "bytes"} if value == "bytes" else {"kind": "file", "path": value}
    return value


def _short_dropout(value: Any) -> Any:
    """``dropout = 0.1``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"rate": value} if number else value


class Tokenizer(Table):
    """A tokenizer to train on the run's own text, or (``path``) one to load."""

    kind: Literal["bytes", "bpe", "unigram", "file"] = "bytes"
    size: Annotated[int, Within(ge=257)] | None = None
    # The longest token to learn, in bytes (models of byte slots need one).
    max_bytes: Positive | None = None
    path: str | None = None

    def _check(self) -> None:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("path goes with kind = 'file', and only with it")
        if (self.kind in ("bpe", "unigram")) != (self.size is not None):
            raise ValueError(
                "size (the vocabulary) goes with kind = 'bpe' or 'unigram', and only with them"
            )
        if self.max_bytes is not None and self.kind != "bpe":
            raise ValueError("max_bytes goes with kind = 'bpe'")


class Text(Table):
    tokenizer: Annotated[Tokenizer, Before(_short_tokenizer)] = Tokenizer()


class Optimizer(Table):
    """AdamW (arXiv:1711.05101) for all, or Muon (Jordan et al. 2024) for the blocks' matrices.

    The schedule's ``peak`` is the rate of the matrices. The other groups' rates are multiples of
    it: ``embedding_rate`` (token and position embeddings, match tables, the head),
    ``vector_rate`` (gains and biases), ``table_rate`` (hashed n-gram tables, row-wise Adagrad
    on the rows that a batch touches). In a muP model (``model.init``) AdamW's rate for the blocks'
    matrices is ``peak`` / m.
    """

    kind: Literal["adamw", "muon"] = "muon"
    beta1: Annotated[float, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Within(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NotNegative = 0.0
    momentum: Annotated[float, Within(ge=0, lt=1)] = 0.95
    embedding_rate: PositiveFloat = 0.75
    vector_rate: PositiveFloat = 0.75
    table_rate: PositiveFloat = 23.0


class Schedule(Table):
    """The learning rate as a pure function of the step.

    "wsd": linear warmup, constant, then a decay over the last ``decay`` share of the steps
    (MiniCPM, arXiv:2404.06395); "cosine" and "linear" fall from the end of warmup to the end.
    All end at ``floor`` times the peak. ``warmup`` in steps.

    ``shape`` of wsd's decay, with x from 0 to 1 over it: "linear" 1 - x, "1-sqrt" 1 - sqrt(x)
    (arXiv:2405.18392), each of what is above the floor; "exponential" floor^x (MiniCPM's
    0.5^(s/T) over n steps has the floor 0.5^(n/T)).
    """

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    peak: PositiveFloat = 0.013
    warmup: Count = 20
    decay: Share = 0.5
    shape: Literal["linear", "exponential", "1-sqrt"] = "linear"
    floor: Share = 0.0

    def _check(self) -> None:
        if self.shape != "linear" and self.kind != "wsd":
            raise ValueError(f"shape = '{self.shape}' belongs to kind = 'wsd'")
        if self.shape == "exponential" and self.floor == 0:
            raise ValueError("shape = 'exponential' needs a floor above 0, where it ends")


class Ramp(Table):
    """Short contexts or small batches first: up to the share ``until`` of the run's steps.

    Each of ``context`` and ``batch_tokens`` is that of the first entry that sets it and is not
    over, then the run's. With ``linear`` they move on to the next value in a straight line,
    rounded down to a divisor of the run's context and to a multiple of it.

    A shorter context leaves a batch's tokens the same: its rows are cut into equal pieces, so the
    data order stays too.
    """

    context: Positive | None = None
    batch_tokens: Positive | None = None
    until: Share
    linear: bool = False

    def _check(self) -> None:
        if self.context is None and self.batch_tokens is None:
            raise ValueError("set context or batch_tokens, or both")


class Checkpoint(Table):
    """Which steps are saved (the last one always is), and which of those are kept.

    Saved: all steps that any of these names. ``every`` so many steps; the steps ``at``; ``count``
    in all, evenly; the ``powers`` of a number, dense early (2: steps 1, 2, 4, 8, ...).
    Kept: the newest ``keep`` (0: all; default: 2 where ``every`` alone is set, else all), those
    whose step is a multiple of ``keep_every``, and the ``keep_best`` of lowest mean loss.
    """

    every: Positive | None = None
    at: list[Positive] = field(default_factory=list)
    count: Positive | None = None
    powers: Annotated[int, Within(ge=2)] | None = None
    keep: Count | None = None
    keep_every: Positive | None = None
    keep_best: Count = 0

    @property
    def scheduled(self) -> bool:
        """Whether anything but the last step is asked for."""
        return bool(self.every or self.at or self.count or self.powers)

    @property
    def newest(self) -> int:
        """How many of the newest are kept; 0: all."""
        if self.keep is not None:
            return self.keep
        return 0 if self.at or self.count or self.powers else 2


class Spikes(Table):
    """What becomes of a step whose loss or gradient norm is far above the recent ones (GEB-1.3B,
    arXiv:2406.09900): it is not taken, its batch is left out, and another is tried.

    Far above: by ``threshold`` robust standard deviations over the median of the last ``window``
    steps (from a quarter of them on), or no number. ``skip`` batches are left out each time: 1
    replaces the batch, 100 to 200 skip a stretch of the data. After ``tries`` the step is taken.
    """

    threshold: PositiveFloat = 8.0
    window: Annotated[int, Within(ge=8)] = 64
    skip: Positive = 1
    tries: Positive = 3


class Dropout(Table):
    """The share of every branch's output, and of the first block's input, that a step drops
    (arXiv:1207.0580), as a function of the step (Super Tiny Language Models, arXiv:2405.14159).

    "constant": ``rate``. "linear": from ``start`` to ``rate`` in a straight line between the
    shares ``begin`` and ``until`` of the steps. "triangle": from ``start`` up to ``rate`` and down
    again, ``cycles`` times. `dropout = 0.1` is short for a constant.
    """

    kind: Literal["constant", "linear", "triangle"] = "constant"
    rate: Annotated[float, Within(ge=0, lt=1)]
    start: Annotated[float, Within(ge=0, lt=1)] = 0.0
    begin: Share = 0.0
    until: Share = 1.0
    cycles: Positive = 1

    def _check(self) -> None:
        if self.kind == "constant" and self.start:
            raise ValueError("start belongs to kind = 'linear' or 'triangle'")
        if self.kind != "linear" and (self.begin, self.until) != (0.0, 1.0):
            raise ValueError("begin and until belong to kind = 'linear'")
        if self.begin >= self.until:
            raise ValueError(f"begin = {self.begin} must be before until = {self.until}")
        if self.kind != "triangle" and self.cycles != 1:
            raise ValueError("cycles belongs to kind = 'triangle'")


class Spans(Table):
    """CodeGen2's span corruption (arXiv:2305.02309), mixed with the causal objective.

    In a ``share`` of the rows, ``density`` of the tokens of one document, in spans of ``length``
    tokens on average, are replaced by masks, and told after it: <eot> <sep> <mask_1> span <eom>
    <mask_2> ... At most ``most`` masks a row; they, <sep> and <eom> are the last ids of the
    vocabulary, mask N at vocab_size - N, where the tokenizer has none of its own.
    """

    share: Share = 0.5
    density: Annotated[float, Within(gt=0, le=0.5)] = 0.15
    length: Annotated[float, Within(ge=1)] = 3.0
    most: Annotated[int, Within(ge=1, le=1000)] = 32


class Objective(Table):
    """What training makes smaller: the mean of -ln p(next token), and what is added or changed.

    ``z_loss`` times the squared log of the softmax's sum (PaLM, arXiv:2204.02311);
    ``label_smoothing`` (arXiv:1512.00567); ``spans`` to fill in; a ``prefix``, in this share of
    the rows, whose positions all see each other and which is not predicted (CodeGen2's Prefix-LM);
    the modules of ``model.ahead`` weigh ``ahead`` together. The ledger's loss stays -ln p alone.
    """

    z_loss: NotNegative = 0.0
    label_smoothing: Annotated[float, Within(ge=0, lt=1)] = 0.0
    spans: Spans | None = None
    prefix: Share = 0.0
    ahead: NotNegative = 0.3


class Train(Table):
    """How long and how fast. Exactly one of ``steps``, ``minutes``, ``tokens`` sets the length.

    ``batch_tokens`` per step, in rows of ``context``; ``micro_batch_tokens`` at a time (gradients
    are accumulated and normalised by the number of targets). A resolved run has ``steps``.
    ``sinks``: other programs that get a copy of the ledger.
    ``embedding_gradient`` multiplies the embeddings' gradient, against spikes (GLM-130B's 0.1).
    """

    context: Positive = 1024
    batch_tokens: Positive = 8192
    micro_batch_tokens: Positive | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Within(gt=0, le=1e7)] | None = None
    tokens: Positive | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ramp: list[Ramp] = field(default_factory=list)
    clip: PositiveFloat | None = 1.0
    objective: Objective = Objective()
    dropout: Annotated[Dropout | None, Before(_short_dropout)] = None
    spikes: Spikes | None = None
    embedding_gradient: Annotated[float, Within(gt=0, le=1)] = 1.0
    checkpoint: Checkpoint = Checkpoint()
    precision: Literal["auto", "f32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    threads: Positive | None = None
    sample_every: Positive | None = None
    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = field(default_factory=list)

    def _check(self) -> None:
        lengths = [n for n in ("steps", "minutes", "tokens") if getattr(self, n) is not None]
        if len(lengths) > 1:
            raise ValueError(f"{' and '.join(lengths)} are both set; keep one of them")
        if self.batch_tokens % self.context:
            raise ValueError(
                f"batch_tokens = {self.batch_tokens} is no multiple of context = {self.context}"
            )
        micro = self.micro_batch_tokens
        if micro is not None and (micro % self.context or self.batch_tokens % micro):
            raise ValueError(
                f"micro_batch_tokens = {micro} must be a multiple of context = {self.context}"
                f" and divide batch_tokens = {self.batch_tokens}"
            )
        for ramp in self.ramp:
            if ramp.context is not None and self.context % ramp.context:
                raise ValueError(f"ramp context {ramp.context} does not divide {self.context}")
            if ramp.batch_tokens is not None and ramp.batch_tokens % self.context:
                raise ValueError(
                    f"ramp batch_tokens {ramp.batch_tokens} is no multiple of"
                    f" context = {self.context}"
                )


class Distributed(Table):
    """What the processes of one job keep parts of: ``torchrun ... -m flyweight train``.

    ``shard``: "none" (each holds everything), or as ZeRO's stages 1 to 3 (arXiv:1910.02054) the
    "optimizer" state, with the "gradients", with the "parameters". ``tensor``: so many processes
    share each row's work, each with some heads and hidden features of every block. One process
    alone does as without the table.
    """

    shard: Literal["none", "optimizer", "gradients", "parameters"] = "gradients"
    tensor: Positive = 1


class Start(Table):
    """The weights that a run starts from, instead of random ones: ``[model] start``.

    ``model``: anything `flyweight import` reads, a run, or RUN@STEP. ``sha256``: of those weights
    as the run's checkpoint 0 holds them (model.safetensors); a resolved run has it.
    """

    model: str
    sha256: Annotated[str, Within(pattern="[0-9a-f]{64}")] | None = None


class RunSpec(Table):
    """A run's configuration, resolved: everything needed to do it again."""

    name: str = "run"
    seed: Annotated[int, Within(ge=0, lt=2**63)] = 0
    model: ModelSpec
    text: Text = Text()
    data: Data = Data()
    train: Train = Train()
    start: Start | None = None
    distributed: Distributed | None = None

    def _check(self) -> None:
        if self.train.embedding_gradient != 1.0 and self.model.input.kind == "slots":
            raise ValueError(
                "train.embedding_gradient does not apply to model.input.kind = 'slots', which"
                " has no embedding of tokens; leave it out"
            )
        rate = self.train.schedule.kind
        if self.data.mix is not None and self.data.mix.decay is not None and rate != "wsd":
            raise ValueError(f'data.mix.decay goes with train.schedule.kind = "wsd", not "{rate}"')
        objective, kind = self.train.objective, self.model.input.kind
        tokens_only = {"spans": objective.spans is not None, "prefix": objective.prefix > 0}
        no_slots = {"z_loss": objective.z_loss, "label_smoothing": objective.label_smoothing}
        for name, asked in (tokens_only if kind == "patches" else tokens_only | no_slots).items():
            if asked and kind != "tokens":
                raise ValueError(
                    f"train.objective.{name} does not apply to model.input.kind = '{kind}';"
                    " leave it out, or take a model of tokens"
                )
