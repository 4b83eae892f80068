"""An encoder-decoder that talks: the prompt is its source, what it writes is the answer."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from flyweight.model.decoder import Decoder
from flyweight.model.runtime import TorchModel
from flyweight.spec.errors import FlyweightError
from flyweight.text.tokenizer import Tokenizer


class AnsweringModel(TorchModel):
    """The protocol that ``flyweight.load`` returns, over a Decoder with an encoder.

    Sources and answers end with the tokenizer's end-of-text token, as in T5's training; a source
    may be empty. Relative positions know no longest text: none is cut, though the model was
    trained on ``context`` tokens at most.
    """

    def __init__(self, name: str, decoder: Decoder, tokenizer: Tokenizer) -> None:
        super().__init__(name, decoder, tokenizer)
        assert decoder.spec.encoder is not None
        self.start = decoder.spec.encoder.start
        if tokenizer.eot_id is None:
            raise FlyweightError(
                f"{name}: the tokenizer has no end-of-text token, which ends an encoder's source"
            )

    def logprobs(
        self, text: str, bos: bool | None = None, source: str | None = None
    ) -> list[tuple[int, float]]:
        """(token id, log probability in nats) of each token of ``text`` as the answer to
        ``source``, and of the end after it: together, that the model answers just this.

        Each is given the source and the tokens before it. ``bos`` is about the source. Without a
        source there is no such probability: FlyweightError.
        """
        if source is None:
            raise FlyweightError(
                f"{self.name} is an encoder-decoder: a text has a probability as the answer to a"
                " source alone; name it: logprobs(text, source=...)"
            )
        ids = self.answer_ids(text)
        memory_ids = self._encode(source, bos)
        return list(zip(ids, self._answer_scores(memory_ids, ids), strict=True))

    def answer_ids(self, text: str) -> list[int]:
        """The tokens that the decoder writes to say ``text``, its end included."""
        return [*self.tokenizer.encode(text), self._end]

    @torch.no_grad()
    def _answer_scores(self, source: list[int], answer: list[int]) -> list[float]:
        memory = self.decoder.encode(torch.tensor([source]))
        tokens_1T = torch.tensor([[self.start, *answer[:-1]]])
        log_probs_TV = self.decoder(tokens_1T, memory=memory)[0].log_softmax(dim=-1)
        picked_T = log_probs_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        found: list[float] = picked_T.double().tolist()
        return found

    @property
    def _end(self) -> int:
        assert self.tokenizer.eot_id is not None
        return self.tokenizer.eot_id

    def _encode(self, text: str, bos: bool | None = None) -> list[int]:
        """The tokens of a source, its end included."""
        return [*super()._encode(text, bos), self._end]

    def _logits(
        self, ids: list[int], left: int
    ) -> Generator[tuple[torch.Tensor, Sequence[int]], int, None]:
        cache = self.decoder.new_cache(memory=self.decoder.encode(torch.tensor([ids])))
        answer = [self.start]
        while True:
            token = yield self.decoder(torch.tensor([answer[-1:]]), cache=cache)[0, -1], answer
            answer.append(token)
