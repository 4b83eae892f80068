"""BPE and unigram tokenizers over the `tokenizers` library: train one, or load a tokenizer.json.

What is trained here is byte-level, so any text comes back exactly.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from flyweight.spec.errors import ConfigurationError, CorruptFileError, FlyweightError
from flyweight.text.tokenizer import (
    EOT,
    MARK,
    PAD,
    byte_characters,
    digest,
    read_json,
    require_id,
    token_dtype,
    utf8,
    with_bos,
    write,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Llama 3's pattern (GPT-4's, with numbers of at most three digits): runs of newlines and of
# spaces stay whole, a word takes along the space or sign before it. It is taken letter by letter
# because GGUF names patterns instead of holding them, and this is one that readers know.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names that end-of-text, padding and beginning-of-text tokens go by in published tokenizers.
_EOT_NAMES = (EOT, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]",
              "<｜end▁of▁sentence｜>", "<|im_end|>", "<|endofprompt|>")  # fmt: skip
_PAD_NAMES = (PAD, "<|pad|>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>",
              "<｜▁pad▁｜>")  # fmt: skip
_BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|bos|>", "[BOS]",
              "<｜begin▁of▁sentence｜>")  # fmt: skip
_UNIGRAM_LETTER_STEP = 1e-4


class SubwordTokenizer:
    """A tokenizer.json in memory. Build one with `train` or `load`, not directly.

    ``document`` is the parsed tokenizer.json. ``add_bos``, ``bos`` and ``eot`` (a token's text)
    override what is read or guessed from it; what they change is saved with it, under
    ``model.flyweight`` (bos_id, eot_id, pad_id, add_bos), which other programs pass over.
    ``written``: the document as ``to_json`` once wrote it, where it is at hand.
    """

    def __init__(
        self,
        document: dict[str, Any],
        add_bos: bool | None = None,
        bos: str | None = None,
        eot: str | None = None,
        written: str | None = None,
    ) -> None:
        self._document, self._written = document, written
        self._plain = self._tokenizer(specials=False)
        try:
            self._plain.encode("a")
        except BaseException as error:
            # The library panics, which is no Exception, at a template of tokens that it lacks.
            if type(error).__name__ != "PanicException":
                raise
            raise CorruptFileError(f"a tokenizer that cannot encode: {error}") from None
        self.kind: str = document["model"].get("type", "BPE").lower()
        added: dict[int, AddedToken] = self._plain.get_added_tokens_decoder()
        # Without a copy of the library's.
        vocab = document["model"]["vocab"]
        if isinstance(vocab, dict):
            vocab = vocab | {token.content: id for id, token in added.items()}
        else:
            vocab = self._plain.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self._special = frozenset(id for id, token in added.items() if token.special)
        self._added = {id: token.content for id, token in added.items()}
        front = self._front()
        mark = _mark(document, self.vocab_size)
        self.eot_id: int | None = mark.get("eot_id", self._named(vocab, _EOT_NAMES))
        self.pad_id: int | None = mark.get("pad_id", self._named(vocab, _PAD_NAMES))
        self.bos_id: int | None = front
        if self.bos_id is None:
            self.bos_id = mark.get("bos_id", self._named(vocab, _BOS_NAMES))
        if self.bos_id is None:
            self.bos_id = self.eot_id
        self.add_bos: bool = mark.get("add_bos", front is not None)
        self._byte_level, self.strips_first_space = _decoding(document)
        if changes := self._changes(vocab, add_bos, bos, eot):
            model = document["model"]
            mark = {**model.get(MARK, {}), **changes}
            self.__init__({**document, "model": {**model, MARK: mark}})  # type: ignore[misc]

    # -- making one

    @classmethod
    def train(
        cls,
        kind: Literal["bpe", "unigram"],
        size: int,
        texts: Iterable[str],
        max_bytes: int | None = None,
    ) -> SubwordTokenizer:
        """A byte-level tokenizer of ``size`` ids, ``<pad>`` and ``<eot>`` the last two of them.

        ``max_bytes`` bounds the length of a token (unigram: 16 where it is None).

        BPE: arXiv:1508.07909; unigram: arXiv:1804.10959. The same texts in the same order give
        the same tokenizer.json, byte for byte. A text too small for ``size`` gives fewer ids and
        a warning. Raises ConfigurationError where size < 258 (256 bytes, <pad>, <eot>).
        """
        if size < 258:
            raise ConfigurationError(
                f"size = {size} is too small: 256 bytes, {PAD} and {EOT} make 258 tokens"
            )
        counted = _Counted(texts)
        model = (
            _train_bpe(size - 2, counted, max_bytes)
            if kind == "bpe"
            else _train_unigram(size - 2, counted, max_bytes)
        )
        tokenizer = _byte_level(model)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([PAD, EOT])
        eot_id = tokenizer.token_to_id(EOT)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{EOT} $A", pair=f"{EOT} $A {EOT} $B", special_tokens=[(EOT, eot_id)]
        )
        made = cls(json.loads(tokenizer.to_str()))
        if made.vocab_size < size:
            warnings.warn(
                f"the text ({counted.characters} characters) has no more than {made.vocab_size}"
                f" tokens to offer; size = {size} was asked for",
                stacklevel=2,
            )
        return made

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        add_bos: bool | None = None,
        bos: str | None = None,
        eot: str | None = None,
    ) -> SubwordTokenizer:
        """Read any byte-level or SentencePiece-like tokenizer.json. See the class for the rest."""
        return cls(read_json(path), add_bos, bos, eot)

    # Only where it is asked for: nothing that reads or writes text needs it.
    @cached_property
    def _json(self) -> str:
        if self._written is not None:
            return self._written
        return json.dumps(self._document, ensure_ascii=False, separators=(",", ":")) + "\n"

    @cached_property
    def digest(self) -> str:
        return digest(self._json)

    def _tokenizer(self, specials: bool) -> tokenizers.Tokenizer:
        try:
            made = of_parts(self._document)
            if made is None:
                made = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises nothing narrower
            raise CorruptFileError(f"not a tokenizer.json that can be read: {error}") from None
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = not specials
        return made

    @cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:
        return self._tokenizer(specials=True)

    def _changes(
        self, ids: dict[str, int], add_bos: bool | None, bos: str | None, eot: str | None
    ) -> dict[str, Any]:
        """What the overrides say that the document does not."""
        asked: dict[str, Any] = {} if add_bos is None else {"add_bos": add_bos}
        asked |= {"bos_id": ids[bos]} if bos in ids else {}
        asked |= {"eot_id": ids[eot]} if eot in ids else {}
        return {name: value for name, value in asked.items() if value != getattr(self, name)}

    def _front(self) -> int | None:
        """The special token that the post-processor puts before a text, if it does so."""
        bare = self._plain.encode("a", add_special_tokens=False).ids
        full = self._plain.encode("a", add_special_tokens=True).ids
        return full[0] if len(full) > len(bare) and full[0] in self._special else None

    def _named(self, vocab: dict[str, int], names: Iterable[str]) -> int | None:
        return next((vocab[name] for name in names if name in vocab), None)

    # -- using it

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        utf8(text)
        tokenizer = self._with_specials if specials else self._plain
        return with_bos(tokenizer.encode(text, add_special_tokens=False).ids, self.bos_id, bos)

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.unsignedinteger]]:
        import numpy as np

        for i, text in enumerate(texts):
            utf8(text, f"document {i}")
        dtype = token_dtype(self.vocab_size)
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        data = b"".join(self.token_bytes(int(id)) for id in ids)
        return data.removeprefix(b" ") if self.strips_first_space else data

    def token_bytes(self, id: int) -> bytes:
        require_id(id, self.vocab_size)
        return self._bytes[id]

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [self._token_bytes(id) for id in range(self.vocab_size)]

    def _token_bytes(self, id: int) -> bytes:
        if id in self._special:
            return b""
        if id in self._added:
            return self._added[id].encode("utf-8")
        token: str | None = self._plain.id_to_token(id)
        if token is None:  # a hole in the vocabulary
            return b""
        if self._byte_level:
            if all(character in _BYTE_OF for character in token):
                return bytes(_BYTE_OF[character] for character in token)
            return token.encode("utf-8")
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode("utf-8")

    def to_json(self) -> str:
        return self._json

    def save(self, path: str | os.PathLike[str]) -> None:
        write(self._json, path)


_MODEL = {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
          "byte_fallback", "ignore_merges"}  # fmt: skip


def of_parts(document: dict[str, Any]) -> tokenizers.Tokenizer | None:
    """The library's tokenizer with the vocabulary of a BPE handed over as it is: written as text
    and read again it takes three times as long. None where the whole must be read."""
    model, added = document["model"], document.get("added_tokens") or []
    vocab, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(vocab, dict) or not isinstance(merges, list):
        return None
    if not set(map(type, merges)) <= {list, tuple}:
        return None
    shell = {**document, "model": {**model, "vocab": {}, "merges": []}, "added_tokens": []}
    made: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shell))
    settings = {name: model[name] for name in _MODEL if model.get(name) is not None}
    made.model = models.BPE(vocab=vocab, merges=list(map(tuple, merges)), **settings)
    for token in added:
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        one = AddedToken(token["content"], **{flag: token[flag] for flag in flags})
        (made.add_special_tokens if token["special"] else made.add_tokens)([one])
        if made.token_to_id(token["content"]) != token["id"]:
            return None
    return made


_BYTE_OF = {character: byte for byte, character in enumerate(byte_characters())}


def _mark(document: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    mark = document["model"].get(MARK, {})
    for name, value in mark.items() if isinstance(mark, dict) else [(MARK, mark)]:
        if name == "add_bos" and isinstance(value, bool):
            continue
        if name in ("bos_id", "eot_id", "pad_id"):
            if value is None or (type(value) is int and 0 <= value < vocab_size):
                continue
        raise CorruptFileError(f"{name} = {value!r} under `model.{MARK}` is none of its values")
    return mark


def _decoding(document: dict[str, Any]) -> tuple[bool, bool]:
    """(byte-level?, is the first space dropped?) from the decoder of a tokenizer.json."""
    decoder = document.get("decoder") or {}
    parts = decoder.get("decoders", [decoder]) if decoder else []
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" in kinds:
        return True, False
    unknown = set(kinds) - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if unknown or not kinds:
        name = ", ".join(sorted(str(kind) for kind in unknown)) or "none"
        raise FlyweightError(
            f"the tokenizer's decoder ({name}) is not supported: it does not say exactly which"
            " bytes a token stands for; byte-level and SentencePiece-like tokenizers do"
        )
    strips = any(
        (part.get("type") == "Strip" and part.get("content") == " " and part.get("start", 0) > 0)
        or (
            part.get("type") == "Metaspace"
            and part.get("prepend_scheme", "always") != "never"
            and part.get("add_prefix_space", True)
        )
        for part in parts
    )
    return False, strips


# -- training


class _Counted:
    """The texts, checked and counted as they pass."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for i, text in enumerate(self._texts):
            utf8(text, f"document {i}")
            self.characters += len(text)
            yield text


def _byte_level(model: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _train_bpe(size: int, texts: Iterable[str], max_bytes: int | None) -> models.BPE:
    # ignore_merges, as Llama 3 has it: a word that is a token is that token.
    tokenizer = _byte_level(models.BPE(ignore_merges=True))
    # In characters of the byte-level alphabet, each of which is a byte; the library stays below it.
    longest: dict[str, Any] = {} if max_bytes is None else {"max_token_length": max_bytes + 1}
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
        **longest,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.model


def _train_unigram(size: int, texts: Iterable[str], max_bytes: int | None) -> models.Unigram:
    tokenizer = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        # The library gives more than it is asked for below some 300; `_settle` cuts.
        vocab_size=max(size, 300),
        max_piece_length=max_bytes or 16,
        initial_alphabet=sorted(byte_characters()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return models.Unigram(_settle(pieces, size))


def _settle(pieces: list[tuple[str, float]], size: int) -> list[tuple[str, float]]:
    """The trained pieces without what varies from one training to the next.

    The library adds up in the order of hash tables, so that scores differ in their last bits, and
    gives letters that it has not kept the scores s, s + 1e-4, s + 2e-4, ... in such an order. Here
    scores have six decimals and those letters all score s; the 256 letters come first.
    """
    scores = {piece: score for piece, score in pieces if score is not None}
    alphabet = sorted(byte_characters())
    letters = {letter: scores[letter] for letter in alphabet if letter in scores}

    def ladder(bottom: float) -> list[str]:
        steps = {name: (at - bottom) / _UNIGRAM_LETTER_STEP for name, at in letters.items()}
        return [
            name
            for name, at in steps.items()
            if 0 <= round(at) < 256 and abs(at - round(at)) < 1e-3
        ]

    unkept = max((ladder(bottom) for bottom in sorted(letters.values())), key=len, default=[])
    lowest = min((letters[letter] for letter in unkept), default=0.0)
    scores |= dict.fromkeys(unkept, lowest)
    settled = [(letter, round(scores.get(letter, lowest), 6)) for letter in alphabet]
    others = [(piece, round(score, 6)) for piece, score in scores.items() if len(piece) > 1]
    others.sort(key=lambda item: (-item[1], item[0]))
    return settled + others[: size - len(settled)]
