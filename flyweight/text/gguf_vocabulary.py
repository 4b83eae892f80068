"""The vocabulary inside a GGUF file: its `tokenizer.ggml` keys as one of the tokenizers here."""

from __future__ import annotations

import json
import warnings
from itertools import chain
from typing import Any

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.spec.table import nearest
from flyweight.text.byte_level import CUTS, byte_level_document
from flyweight.text.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Pieces

_PREFIX = "tokenizer.ggml."
# The whole tokenizer.json, in files of ours whose other keys cannot say all of it.
OWN = "flyweight.tokenizer"


def document_of(keys: dict[str, Any]) -> dict[str, Any]:
    """``vocabulary_of``'s, as a tokenizer.json whatever it is."""
    found = vocabulary_of(keys)
    return found.document() if isinstance(found, Pieces) else found


def vocabulary_of(keys: dict[str, Any]) -> Pieces | dict[str, Any]:
    """The vocabulary in a GGUF file's metadata: SentencePiece's, or a tokenizer.json, parsed.

    Models "llama" (SentencePiece BPE) and "gpt2" (byte-level BPE) are read. A beginning-of-text
    token is added as `add_bos_token` says; without that key "llama" adds one and "gpt2" does not.
    A file of ours that holds its tokenizer.json gives that.
    Raises CorruptFileError where it is damaged, FlyweightError where it is of another kind.
    """
    if OWN in keys:
        return _own(keys[OWN])
    wanted = {key: value for key, value in keys.items() if key.startswith(_PREFIX)}
    return _Keys(wanted).vocabulary()


def _own(text: Any) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{OWN} is no JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise CorruptFileError(f"{OWN} is no tokenizer.json: it has no `model`")
    return document


class _Keys:
    """The keys of one file, each read with its type checked."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self._keys = {key.removeprefix(_PREFIX): value for key, value in keys.items()}

    def vocabulary(self) -> Pieces | dict[str, Any]:
        model = self.one("model", str)
        if model is None:
            raise FlyweightError(f"it holds no vocabulary: the key {_PREFIX}model is not in it")
        self.tokens = [
            token or f"[EMPTY_{id}]" for id, token in enumerate(self.many("tokens", str))
        ]
        if model == "llama":
            return self.pieces()
        if model == "gpt2":
            return self.byte_level()
        raise FlyweightError(
            f"its vocabulary is of the model {model!r}; llama (SentencePiece BPE) and gpt2"
            " (byte-level BPE) are supported"
        )

    def one(self, name: str, kind: type) -> Any:
        value = self._keys.get(name)
        if value is not None and type(value) is not kind:
            raise CorruptFileError(f"{_PREFIX}{name} is {value!r}: {kind.__name__} is wanted")
        return value

    def many(self, name: str, kind: type, optional: bool = False) -> list[Any]:
        value = self._keys.get(name)
        if optional and (value is None or value == []):
            return []
        if not isinstance(value, list) or set(map(type, value)) != {kind}:
            what = "missing" if value is None else "something else"
            raise CorruptFileError(
                f"{_PREFIX}{name} is {what}: a list of {kind.__name__} is wanted"
            )
        return value

    def id(self, name: str) -> int | None:
        id: int | None = self.one(f"{name}_token_id", int)
        # All bits set, in llama.cpp's own files, stands for no token.
        if id is None or id == 0xFFFFFFFF:
            return None
        if not 0 <= id < len(self.tokens):
            raise CorruptFileError(
                f"{_PREFIX}{name}_token_id = {id} in a vocabulary of {len(self.tokens)} tokens"
            )
        return id

    def types(self) -> list[int]:
        types = self.many("token_type", int, optional=True) or [NORMAL] * len(self.tokens)
        if len(types) != len(self.tokens):
            raise CorruptFileError(f"{len(self.tokens)} tokens and {len(types)} types")
        return types

    def pieces(self) -> Pieces:
        types = self.types()
        unk_id = self.id("unknown")
        bos_id = self.id("bos")
        add_bos = self.one("add_bos_token", bool)
        return Pieces(
            kind="bpe",
            pieces=tuple(self.tokens),
            scores=tuple(self.many("scores", float)),
            types=tuple(types),
            unk_id=0 if unk_id is None else unk_id,
            byte_fallback=BYTE in types,
            add_dummy_prefix=self.one("add_space_prefix", bool) is not False,
            bos_id=bos_id,
            eot_id=self.id("eos"),
            pad_id=self.id("padding"),
            add_bos=bos_id is not None if add_bos is None else add_bos,
        )

    def byte_level(self) -> dict[str, Any]:
        cut = self.one("pre", str)
        if cut is None:
            cut = "default"
            warnings.warn(
                f"the file does not say how its vocabulary cuts words ({_PREFIX}pre);"
                " 'default' is taken, and the tokens may not be those of its training",
                stacklevel=2,
            )
        if cut not in CUTS:
            raise FlyweightError(
                f"{_PREFIX}pre = {cut!r} is a way to cut words that is not"
                f" supported{nearest(cut, list(CUTS))}"
            )
        vocab = {token: id for id, token in enumerate(self.tokens)}
        if len(vocab) < len(self.tokens):
            twice = next(t for id, t in enumerate(self.tokens) if vocab[t] != id)
            raise CorruptFileError(f"the token {twice!r} stands in it twice")
        merges = _pairs(self.many("merges", str, optional="merges" in self._keys), vocab)
        types = self.types()
        bos_id, add_bos = self.id("bos"), self.one("add_bos_token", bool) is True
        if add_bos and bos_id is None:
            raise CorruptFileError(f"{_PREFIX}add_bos_token is true, and no bos_token_id is there")
        mark = {
            "bos_id": bos_id,
            "eot_id": self.id("eos"),
            "pad_id": self.id("padding"),
            "add_bos": add_bos,
        }
        special = [t for id, t in enumerate(self.tokens) if types[id] in (UNKNOWN, CONTROL)]
        user_defined = [t for id, t in enumerate(self.tokens) if types[id] == USER_DEFINED]
        return byte_level_document(
            vocab, list(dict.fromkeys(merges)), cut, special, user_defined, mark
        )


def _pairs(merges: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Each merge's two tokens. Raises CorruptFileError for one whose tokens ``vocab`` lacks."""
    # Most vocabularies have one space in each; there are hundreds of thousands.
    halves = [tuple(merge.split(" ")) for merge in merges]
    made = (merge.replace(" ", "") for merge in merges)
    if set(map(len, halves)) == {2} and all(map(vocab.__contains__, chain(*halves, made))):
        return halves  # type: ignore[return-value]
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        # A token can begin with a space, and none can be empty.
        at = merge.find(" ", 1)
        if at < 0 or at == len(merge) - 1:
            raise CorruptFileError(f"the merge {merge!r} is not two tokens")
        pair = merge[:at], merge[at + 1 :]
        if any(token not in vocab for token in (*pair, pair[0] + pair[1])):
            raise CorruptFileError(f"the merge {merge!r} is of tokens that are not in it")
        pairs.append(pair)
    return pairs
