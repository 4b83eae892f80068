"""What a tokenizer is to the rest of Flyweight, and what all tokenizers have in common."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flyweight.spec.errors import CorruptFileError, FlyweightError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAD = "<pad>"
EOT = "<eot>"
# The key within a tokenizer.json's `model` for what the format has no word for.
MARK = "flyweight"


class Tokenizer(Protocol):
    """Text to ids and back. ``eot_id`` separates documents; ``digest`` names the tokenizer."""

    # "bytes", or the model inside tokenizer.json: "bpe", "unigram".
    kind: str
    vocab_size: int
    eot_id: int | None
    pad_id: int | None
    bos_id: int | None
    # Whether a model with this tokenizer expects bos_id in front of a text. `encode` itself puts
    # it there only when asked.
    add_bos: bool

    @property
    def digest(self) -> str:
        """sha256, in hex, of the bytes that `save` writes."""
        ...

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        """The ids of ``text``, with ``bos_id`` first if ``bos`` is True (None adds nothing).

        Special tokens written in the text are ordinary text unless ``specials``.
        Raises FlyweightError where the text holds a lone surrogate.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``: special tokens dropped, invalid UTF-8 replaced by U+FFFD."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes that ``ids`` stand for, special tokens dropped."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        """The ids of each text, as ``token_dtype(vocab_size)``; no bos, specials as text."""
        ...

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token stands for inside a text; b"" for special tokens."""
        ...

    def to_json(self) -> str:
        """The canonical tokenizer.json: what `save` writes and `digest` is taken of."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer.json (UTF-8) to ``path``."""
        ...


def token_dtype(vocab_size: int) -> type[np.uint16 | np.uint32]:
    """The narrower of uint16 and uint32 that holds every id."""
    import numpy as np

    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def byte_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """(vocab_size,): the number of bytes each token stands for; 0 for special tokens."""
    import numpy as np

    lengths = (len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
    return np.fromiter(lengths, dtype=np.int64, count=tokenizer.vocab_size)


def require_id(id: int, vocab_size: int) -> None:
    if not 0 <= id < vocab_size:
        raise FlyweightError(f"token id {id} is outside of the vocabulary of {vocab_size} tokens")


def with_bos(ids: list[int], bos_id: int | None, bos: bool | None) -> list[int]:
    """``ids`` as they are, or with the beginning-of-text token in front where ``bos`` is True."""
    if not bos:
        return ids
    if bos_id is None:
        raise FlyweightError("bos=True, but this tokenizer has no beginning-of-text token")
    return [bos_id, *ids]


def utf8(text: str, where: str = "the text") -> bytes:
    """``text`` in UTF-8. A lone surrogate (half a character) is one clear FlyweightError."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FlyweightError(
            f"{where} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character"
            f" {error.start}: half a character cannot be encoded; remove it, or replace it with"
            " text.encode('utf-8', 'replace').decode()"
        ) from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A parsed tokenizer.json. Raises CorruptFileError naming the file."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FlyweightError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON, so no tokenizer.json: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise CorruptFileError(f"{path} is no tokenizer.json: it has no `model`")
    return document


def digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def write(canonical: str, path: str | os.PathLike[str]) -> None:
    Path(path).write_text(canonical, encoding="utf-8", newline="\n")


def byte_characters() -> str:
    """The printable character by which byte-level vocabularies write each byte (GPT-2).

    Visible Latin-1 characters stand for themselves; the 68 other bytes take U+0100 and up.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        table.setdefault(byte, chr(0x100 + len(table) - len(visible)))
    return "".join(table[byte] for byte in range(256))


class StreamDecoder:
    """Token ids in, whole characters out: an unfinished UTF-8 sequence waits for its rest.

    The pieces, joined, and then ``flush()``, equal ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # A tokenizer that marks word starts may drop the space before the first word, and one
        # that cannot say everything may write a sign for what it could not.
        self._front = True
        self._first = getattr(tokenizer, "first_bytes", self._first_bytes)
        self._shown = getattr(tokenizer, "shown_bytes", tokenizer.token_bytes)

    def push(self, ids: int | Iterable[int]) -> str:
        """The text that ``ids`` complete; "" while a character is still unfinished."""
        ids = iter(ids if isinstance(ids, Iterable) else [ids])
        data = bytearray()
        while self._front and (id := next(ids, None)) is not None:
            piece, self._front = self._first(int(id))
            data += piece
        data += b"".join(self._shown(int(id)) for id in ids)
        return self._utf8.decode(data)

    def _first_bytes(self, id: int) -> tuple[bytes, bool]:
        """The bytes of the first token that has some, and whether it is still to come."""
        data = self._tokenizer.token_bytes(id)
        if data and getattr(self._tokenizer, "strips_first_space", False):
            return data.removeprefix(b" "), False
        return data, not data

    def flush(self) -> str:
        """What is left, unfinished bytes replaced by U+FFFD; the decoder is then as new."""
        rest = self._utf8.decode(b"", final=True)
        self.__init__(self._tokenizer)  # type: ignore[misc]
        return rest
