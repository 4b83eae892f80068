"""The tokenizer of SentencePiece vocabularies, exact to SentencePiece's own encoder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from flyweight.text.charsmap import SPACE, Longest, Normalizer, read_charsmap
from flyweight.text.merges import ScoredMerges
from flyweight.text.pieces import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pieces,
)
from flyweight.text.tokenizer import (
    StreamDecoder,
    digest,
    require_id,
    token_dtype,
    utf8,
    with_bos,
    write,
)
from flyweight.text.unigram import Unigram, unknown_score, user_defined_score

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class PieceTokenizer:
    """Pieces by score (BPE) or by likelihood (unigram), with SentencePiece's normaliser.

    User-defined pieces are found in any text, as SentencePiece finds them; control pieces only
    where ``specials`` asks for them.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.kind: str = pieces.kind
        self.vocab_size = len(pieces.pieces)
        self.bos_id, self.eot_id, self.pad_id = pieces.bos_id, pieces.eot_id, pieces.pad_id
        self.add_bos = pieces.add_bos
        self.strips_first_space = pieces.strips_first_space
        self._controls = pieces.of_type(CONTROL, UNKNOWN)
        self._control = Longest(self._controls)
        user_defined = tuple(pieces.of_type(USER_DEFINED))
        self._user_defined = Longest(user_defined)
        self._normalize = Normalizer(
            read_charsmap(pieces.charsmap),
            user_defined,
            pieces.add_dummy_prefix,
            pieces.remove_extra_whitespaces,
            pieces.escape_whitespaces,
            pieces.suffix,
        )
        self._bytes_of = pieces.bytes_of()
        byte_ids = {byte: id for id, byte in self._bytes_of.items()}
        self._byte_ids = byte_ids if pieces.byte_fallback else {}
        self._unigram: Unigram | None = None
        self._merges: ScoredMerges | None = None
        if pieces.kind == "unigram":
            self._unigram = self._make_unigram()
        else:
            self._merges = self._make_merges()
        self._unknown_text = pieces.unknown_text.encode()
        self._as_they_are = frozenset({pieces.unk_id, *self._bytes_of})

    # Only where it is asked for: nothing that reads or writes text needs it.
    @cached_property
    def _json(self) -> str:
        document = self._pieces.document()
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"

    @cached_property
    def digest(self) -> str:
        return digest(self._json)

    # -- what the pieces become

    def _make_unigram(self) -> Unigram:
        p = self._pieces
        normal = p.of_type(NORMAL)
        scores = {piece: (id, p.scores[id]) for piece, id in normal.items()}
        for piece, id in p.of_type(USER_DEFINED).items():
            scores[piece] = id, user_defined_score(piece)
        least = unknown_score([p.scores[id] for id in normal.values()])
        return Unigram(scores, least, self._unknown, _words(scores))

    def _make_merges(self) -> ScoredMerges:
        p = self._pieces
        found = p.of_type(NORMAL, USER_DEFINED, UNUSED)
        scored = {piece: (id, p.scores[id]) for piece, id in found.items()}
        unused = frozenset(p.of_type(UNUSED).values())
        return ScoredMerges(scored, unused, self._unknown, _words(scored))

    def _unknown(self, text: str) -> Sequence[int]:
        if self._byte_ids:
            return [self._byte_ids[byte] for byte in text.encode()]
        return [self._pieces.unk_id]

    # -- using it

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        utf8(text)
        if not specials:
            return with_bos(self._encode(text), self.bos_id, bos)
        ids: list[int] = []
        at = 0
        while at < len(text):
            start, stop = self._control.find(text, at) or (len(text), len(text))
            ids += self._encode(text[at:start])
            if start < stop:
                ids.append(self._controls[text[start:stop]])
            at = stop
        return with_bos(ids, self.bos_id, bos)

    def _encode(self, text: str) -> list[int]:
        normal = self._normalize(text)
        if self._unigram is not None:
            ids = self._unigram(normal)
        else:
            assert self._merges is not None
            ids = self._merges(normal, self._user_defined)
        unk = self._pieces.unk_id
        if self._byte_ids or unk not in ids:
            return ids
        # A run of unknown characters is one unknown piece.
        return [id for i, id in enumerate(ids) if id != unk or not i or ids[i - 1] != unk]

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        import numpy as np

        for i, text in enumerate(texts):
            utf8(text, f"document {i}")
        dtype = token_dtype(self.vocab_size)
        return [np.asarray(self._encode(text), dtype=dtype) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        decoder = StreamDecoder(self)
        return decoder.push(ids) + decoder.flush()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        data = bytearray()
        front = True
        for id in map(int, ids):
            piece, front = self.first_bytes(id) if front else (self.token_bytes(id), False)
            data += b"" if id == self._pieces.unk_id else piece
        return bytes(data)

    def token_bytes(self, id: int) -> bytes:
        require_id(id, self.vocab_size)
        if id in self._bytes_of:
            return bytes([self._bytes_of[id]])
        if self._pieces.types[id] in (UNKNOWN, CONTROL):
            return b""
        return self._pieces.pieces[id].replace(SPACE, " ").encode()

    def shown_bytes(self, id: int) -> bytes:
        """As token_bytes, but what `decode` writes where a text held what no piece can say."""
        return self._unknown_text if id == self._pieces.unk_id else self.token_bytes(id)

    def first_bytes(self, id: int) -> tuple[bytes, bool]:
        """As shown_bytes where nothing has been shown yet, and whether that is still so.

        The space that encoding put in front is not shown; nor, where encoding removes those
        that are too many, is a second one.
        """
        piece = self.shown_bytes(id)
        # A space that a user-defined piece holds as a space, not as ▁, stays.
        marked = id not in self._as_they_are and self._pieces.pieces[id].startswith(SPACE)
        if self.strips_first_space and marked and piece[:1] == b" ":
            piece = piece[1:]
            return piece, not piece and self._pieces.remove_extra_whitespaces
        return piece, not piece

    def to_json(self) -> str:
        return self._json

    def save(self, path: str | os.PathLike[str]) -> None:
        write(self._json, path)


def _words(pieces: Iterable[str]) -> re.Pattern[str] | None:
    """How a text can be cut so that no piece crosses: before spaces, behind them, or not at all."""
    before = behind = True
    for piece in pieces:
        before = before and SPACE not in piece.lstrip(SPACE)
        behind = behind and SPACE not in piece.rstrip(SPACE)
    if before:
        return re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
    if behind:
        return re.compile(f"[^{SPACE}]*{SPACE}+|[^{SPACE}]+")
    return None
