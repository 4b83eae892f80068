"""A SentencePiece .model file: its vocabulary, its normaliser and what was asked of its training.

The message's fields: sentencepiece_model.proto of https://github.com/google/sentencepiece.
"""

from __future__ import annotations

from typing import Literal

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.pieces import BYTE, CONTROL, UNKNOWN, Pieces
from flyweight.text.protobuf import fields

_KINDS: dict[int, Literal["unigram", "bpe"]] = {1: "unigram", 2: "bpe"}
_OTHER_KINDS = {3: "word", 4: "char"}


class _Trainer:
    """TrainerSpec, as far as encoding and decoding ask for it."""

    def __init__(self) -> None:
        self.model_type = 1
        self.suffix = self.byte_fallback = False
        self.unknown_text = " ⁇ "
        self.bos, self.eos, self.pad = "<s>", "</s>", "<pad>"

    def read(self, message: bytes) -> None:
        for field in fields(message):
            match field.number:
                case 3:
                    self.model_type = field.integer()
                case 24:
                    self.suffix = field.boolean()
                case 35:
                    self.byte_fallback = field.boolean()
                case 44:
                    self.unknown_text = field.text()
                case 46:
                    self.bos = field.text()
                case 47:
                    self.eos = field.text()
                case 48:
                    self.pad = field.text()


class _Normalizer:
    """NormalizerSpec."""

    def __init__(self) -> None:
        self.charsmap = b""
        self.add_dummy_prefix = self.remove_extra_whitespaces = self.escape_whitespaces = True

    def read(self, message: bytes) -> None:
        for field in fields(message):
            match field.number:
                case 2:
                    self.charsmap = field.data()
                case 3:
                    self.add_dummy_prefix = field.boolean()
                case 4:
                    self.remove_extra_whitespaces = field.boolean()
                case 5:
                    self.escape_whitespaces = field.boolean()


def read_model(data: bytes) -> Pieces:
    """The vocabulary of a unigram or BPE .model, nothing added in front of a text.

    Raises CorruptFileError where ``data`` is no such file, FlyweightError where it is of a kind
    that is not supported.
    """
    trainer, normalizer, denormalizer = _Trainer(), _Normalizer(), _Normalizer()
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    for field in fields(data):
        match field.number:
            case 1:
                piece, score, type = _piece(field.data())
                pieces.append(piece)
                scores.append(score)
                types.append(type)
            case 2:
                trainer.read(field.data())
            case 3:
                normalizer.read(field.data())
            case 5:
                denormalizer.read(field.data())
    kind = _KINDS.get(trainer.model_type)
    if kind is None:
        name = _OTHER_KINDS.get(trainer.model_type, f"number {trainer.model_type}")
        raise FlyweightError(
            f"a SentencePiece model of type {name}: unigram and bpe are supported; train one of"
            " those"
        )
    if denormalizer.charsmap:
        raise FlyweightError(
            "a SentencePiece model with a denormaliser, which is not supported: train it without"
            " denormalization_rule_tsv"
        )
    unknowns = [id for id, type in enumerate(types) if type == UNKNOWN]
    if len(unknowns) != 1:
        raise CorruptFileError(f"{len(unknowns)} unknown pieces where one is wanted")
    if BYTE in types and not trainer.byte_fallback:
        raise CorruptFileError("it has byte pieces, and says that it has none")
    controls = {pieces[id]: id for id, type in enumerate(types) if type == CONTROL}
    return Pieces(
        kind=kind,
        pieces=tuple(pieces),
        scores=tuple(scores),
        types=tuple(types),
        unk_id=unknowns[0],
        byte_fallback=trainer.byte_fallback,
        charsmap=normalizer.charsmap,
        add_dummy_prefix=normalizer.add_dummy_prefix,
        remove_extra_whitespaces=normalizer.remove_extra_whitespaces,
        escape_whitespaces=normalizer.escape_whitespaces,
        suffix=trainer.suffix,
        unknown_text=trainer.unknown_text,
        bos_id=controls.get(trainer.bos),
        eot_id=controls.get(trainer.eos),
        pad_id=controls.get(trainer.pad),
    )


def _piece(message: bytes) -> tuple[str, float, int]:
    piece, score, type = "", 0.0, 1
    for field in fields(message):
        match field.number:
            case 1:
                piece = field.text()
            case 2:
                score = field.float32()
            case 3:
                type = field.integer()
    return piece, score, type
