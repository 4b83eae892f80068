"""What a SentencePiece vocabulary holds, and the tokenizer.json that says all of it.

Other programs read that file as the nearest that the `tokenizers` library has. What the library
has no word for (scores of BPE pieces, kinds of pieces, the exact normaliser) stands under
``model.flyweight``, which other programs pass over.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any, Literal

from flyweight.spec.errors import CorruptFileError
from flyweight.text.charsmap import SPACE
from flyweight.text.document import added_token, bpe, surrounded_by, tokenizer_json
from flyweight.text.tokenizer import MARK

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Every beginning of a piece is looked up, so that long ones would cost their length squared.
_LONGEST = 512
_FLAGS = (
    "byte_fallback",
    "add_dummy_prefix",
    "remove_extra_whitespaces",
    "escape_whitespaces",
    "suffix",
    "add_bos",
)


@dataclass(frozen=True)
class Pieces:
    """A vocabulary by id, and how text becomes its pieces.

    ``types`` are SentencePiece's (and GGUF's): 1 normal, 2 unknown, 3 control, 4 user-defined,
    5 unused, 6 byte. ``unknown_text`` is what `decode` writes for an unknown piece. Raises
    CorruptFileError where the parts do not fit.
    """

    kind: Literal["bpe", "unigram"]
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    unk_id: int
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    suffix: bool = False
    unknown_text: str = ""
    bos_id: int | None = None
    eot_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False
    # For other programs, which put an end behind a text by themselves; `encode` never does.
    add_eot: bool = False

    def __post_init__(self) -> None:
        size = len(self.pieces)
        if not size:
            raise CorruptFileError("the vocabulary is empty")
        if len(self.scores) != size or len(self.types) != size:
            raise CorruptFileError(
                f"{size} pieces, {len(self.scores)} scores and {len(self.types)} types: as many of"
                " each are wanted"
            )
        # One by one only where something is wrong: vocabularies are large.
        right = (
            len(set(self.pieces)) == size
            and all(self.pieces)
            and max(map(len, self.pieces)) <= _LONGEST
            and all(map(math.isfinite, self.scores))
            and set(self.types) <= set(range(NORMAL, BYTE + 1))
            and len(self.bytes_of()) == self.types.count(BYTE)
        )
        if not right:
            self._refuse()
        for name in ("unk_id", "bos_id", "eot_id", "pad_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < size:
                raise CorruptFileError(f"{name} = {value} in a vocabulary of {size} pieces")
        if self.byte_fallback and len(set(self.bytes_of().values())) < 256:
            raise CorruptFileError("the vocabulary falls back to bytes and lacks some of the 256")
        if self.add_bos and self.bos_id is None:
            raise CorruptFileError("a beginning-of-text token is to be added, and there is none")
        if self.add_eot and self.eot_id is None:
            raise CorruptFileError("an end-of-text token is to be added, and there is none")

    def _refuse(self) -> None:
        """Raises CorruptFileError for the first piece that is none."""
        seen: set[str] = set()
        for id, piece in enumerate(self.pieces):
            if not piece or piece in seen:
                what = f"the text of another ({piece!r})" if piece else "no text"
                raise CorruptFileError(f"piece {id} has {what}")
            seen.add(piece)
            if len(piece) > _LONGEST:
                raise CorruptFileError(
                    f"piece {id} has {len(piece)} characters; {_LONGEST} are the most that is read"
                )
            if not math.isfinite(self.scores[id]):
                raise CorruptFileError(f"piece {id} ({piece!r}) scores {self.scores[id]}")
            if not NORMAL <= self.types[id] <= BYTE:
                raise CorruptFileError(
                    f"piece {id} ({piece!r}) is of unknown type {self.types[id]}"
                )
            if self.types[id] == BYTE and _byte(piece) is None:
                raise CorruptFileError(f"byte piece {id} is {piece!r}, which is no byte")

    def bytes_of(self) -> dict[int, int]:
        """The byte of each byte piece, by id."""
        found = ((id, _byte(self.pieces[id])) for id, t in enumerate(self.types) if t == BYTE)
        return {id: byte for id, byte in found if byte is not None}

    def of_type(self, *types: int) -> dict[str, int]:
        """The pieces of these types and their ids."""
        return {p: id for id, p in enumerate(self.pieces) if self.types[id] in types}

    # -- as a tokenizer.json

    def document(self) -> dict[str, Any]:
        """The tokenizer.json, parsed."""
        return tokenizer_json(
            self._model() | {MARK: self._mark()},
            self._added_tokens(),
            decoder=self._decoder(),
            normalizer=self._normalizer(),
            post_processor=self._post_processor(),
        )

    def _added_tokens(self) -> list[dict[str, Any]]:
        return [
            added_token(id, piece, special=self.types[id] != USER_DEFINED)
            for id, piece in enumerate(self.pieces)
            if self.types[id] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def _normalizer(self) -> dict[str, Any] | None:
        parts: list[dict[str, Any]] = []
        space = SPACE if self.escape_whitespaces else " "
        if self.charsmap:
            charsmap = base64.b64encode(self.charsmap).decode()
            parts.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
        if self.remove_extra_whitespaces:
            parts.append({"type": "Strip", "strip_left": True, "strip_right": True})
            parts.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if self.add_dummy_prefix and not self.suffix:
            parts.append({"type": "Prepend", "prepend": space})
        if self.escape_whitespaces:
            parts.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
        return {"type": "Sequence", "normalizers": parts} if parts else None

    def _post_processor(self) -> dict[str, Any] | None:
        front = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        behind = [self.eot_id] if self.add_eot and self.eot_id is not None else []
        if not front and not behind:
            return None
        return surrounded_by(*([(id, self.pieces[id]) for id in ids] for ids in (front, behind)))

    def _decoder(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if self.strips_first_space:
            parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {"type": "Sequence", "decoders": parts}

    @property
    def strips_first_space(self) -> bool:
        return self.add_dummy_prefix or self.remove_extra_whitespaces

    def _model(self) -> dict[str, Any]:
        if self.kind == "unigram":
            return {
                "type": "Unigram",
                "unk_id": self.unk_id,
                "vocab": [list(pair) for pair in zip(self.pieces, self.scores, strict=True)],
                "byte_fallback": self.byte_fallback,
            }
        return bpe(
            {piece: id for id, piece in enumerate(self.pieces)},
            self._merges(),
            unk_token=self.pieces[self.unk_id],
            fuse_unk=True,
            byte_fallback=self.byte_fallback,
        )

    def _merges(self) -> list[list[str]]:
        """Every way in which two pieces make a third, the best-scored third first."""
        known = self.of_type(NORMAL, UNUSED)
        found: list[tuple[float, int, int, list[str]]] = []
        for piece, id in known.items():
            for cut in range(1, len(piece)):
                left = known.get(piece[:cut])
                if left is not None and piece[cut:] in known:
                    found.append((-self.scores[id], id, left, [piece[:cut], piece[cut:]]))
        return [pair for *_, pair in sorted(found)]

    def _mark(self) -> dict[str, Any]:
        mark: dict[str, Any] = {
            "format": "sentencepiece",
            "types": "".join(str(t) for t in self.types),
            "unk_id": self.unk_id,
            "bos_id": self.bos_id,
            "eot_id": self.eot_id,
            "pad_id": self.pad_id,
            "unknown_text": self.unknown_text,
        }
        mark |= {flag: getattr(self, flag) for flag in _FLAGS}
        mark |= {"add_eot": True} if self.add_eot else {}
        if self.kind == "bpe":
            mark["scores"] = list(self.scores)
        return mark


def holds_pieces(document: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is one that `Pieces.document` wrote."""
    mark = document["model"].get(MARK)
    return isinstance(mark, dict) and mark.get("format") == "sentencepiece"


def read_document(document: dict[str, Any]) -> Pieces:
    """The inverse of `Pieces.document`. Raises CorruptFileError where the file was changed."""
    model = document["model"]
    mark = model[MARK]
    try:
        unigram = model["type"] == "Unigram"
        if unigram:
            names = [pair[0] for pair in model["vocab"]]
            scores = [pair[1] for pair in model["vocab"]]
        else:
            names = sorted(model["vocab"], key=model["vocab"].__getitem__)
            scores = mark["scores"]
            if [model["vocab"][name] for name in names] != list(range(len(names))):
                raise CorruptFileError("the ids of its vocabulary have holes")
        made = Pieces(
            kind="unigram" if unigram else "bpe",
            pieces=tuple(_of(str, name) for name in names),
            scores=tuple(float(_of((int, float), score)) for score in scores),
            types=tuple(int(digit) for digit in mark["types"]),
            charsmap=_charsmap(document),
            unk_id=_of(int, mark["unk_id"]),
            unknown_text=_of(str, mark["unknown_text"]),
            **{name: _of((int, type(None)), mark[name]) for name in ("bos_id", "eot_id", "pad_id")},
            **{flag: _of(bool, mark[flag]) for flag in _FLAGS},
            add_eot=_of(bool, mark.get("add_eot", False)),
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise CorruptFileError(f"not a tokenizer.json that can be read: {error!r}") from None
    if made.document() != document:
        raise CorruptFileError(
            f"its parts contradict each other: what stands under `model.{MARK}` and the rest were"
            " written together; change neither by hand"
        )
    return made


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of the type wanted")
    return value


def _charsmap(document: dict[str, Any]) -> bytes:
    for part in (document.get("normalizer") or {}).get("normalizers", []):
        if part.get("type") == "Precompiled":
            try:
                return base64.b64decode(part["precompiled_charsmap"], validate=True)
            except binascii.Error as error:
                raise CorruptFileError(f"the charsmap is not base64: {error}") from None
    return b""


def _byte(piece: str) -> int | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return int(piece[3:5], 16)
        except ValueError:
            return None
    return None
