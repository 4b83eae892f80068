"""The tokenizer that has nothing to learn: a byte is a token."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from flyweight.text.document import BYTE_LEVEL, added_token, bpe, surrounded_by, tokenizer_json
from flyweight.text.tokenizer import (
    EOT,
    PAD,
    byte_characters,
    digest,
    require_id,
    utf8,
    with_bos,
    write,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAD_ID = 256
EOT_ID = 257


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is ``<pad>``, 257 is ``<eot>`` (and begins a text).

    Its tokenizer.json is an ordinary byte-level BPE without merges, which the `tokenizers`
    library reads and encodes to the same ids.
    """

    kind = "bytes"
    vocab_size = 258
    pad_id: int | None = PAD_ID
    eot_id: int | None = EOT_ID
    bos_id: int | None = EOT_ID
    add_bos = True

    def __init__(self) -> None:
        self.digest = digest(self.to_json())

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        if specials:
            return with_bos(self._encode_specials(text), EOT_ID, bos)
        return with_bos(list(utf8(text)), EOT_ID, bos)

    def _encode_specials(self, text: str) -> list[int]:
        ids: list[int] = []
        utf8(text)  # so that an error names the position in the whole text
        for i, between_pads in enumerate(text.split(PAD)):
            ids += [PAD_ID] if i else []
            for j, piece in enumerate(between_pads.split(EOT)):
                ids += [EOT_ID] if j else []
                ids += piece.encode("utf-8")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        # Of an array, Python's own numbers: faster to look at one by one.
        given = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if given and not 0 <= min(given) <= max(given) < self.vocab_size:
            for id in given:
                require_id(id, self.vocab_size)
        return bytes([id for id in given if id < PAD_ID])

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        import numpy as np

        return [
            np.frombuffer(utf8(text, f"document {i}"), dtype=np.uint8).astype(np.uint16)
            for i, text in enumerate(texts)
        ]

    def token_bytes(self, id: int) -> bytes:
        require_id(id, self.vocab_size)
        return bytes([id]) if id < PAD_ID else b""

    def to_json(self) -> str:
        return _canonical()

    def save(self, path: str | os.PathLike[str]) -> None:
        write(self.to_json(), path)


def is_byte_tokenizer(document: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json is the one that ByteTokenizer writes, whatever the order
    of its keys."""
    return document == json.loads(_canonical())


@cache
def _canonical() -> str:
    written = tokenizer_json(
        bpe({character: byte for byte, character in enumerate(byte_characters())}, []),
        [added_token(PAD_ID, PAD), added_token(EOT_ID, EOT)],
        decoder=BYTE_LEVEL,
        pre_tokenizer=BYTE_LEVEL,
        post_processor=surrounded_by([(EOT_ID, EOT)]),
    )
    return json.dumps(written, ensure_ascii=False, separators=(",", ":")) + "\n"
