"""Loss spikes (GEB-1.3B, arXiv:2406.09900): finding them, and going around the data they came from.

A step whose loss or gradient norm is far above the recent ones is not taken. Its batch is left
out, alone or with a stretch of those after it, and the step is tried again with what follows. What
is remembered lies in the checkpoint and what was left out in the ledger, so that a resumed or
replayed run does the same, bit for bit.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from torch import Tensor

from flyweight.model.decoder import Decoder
from flyweight.spec.run import Spikes
from flyweight.train.schedule import Moment

# Below these deviations nothing is rare: a hundredth of the loss, a tenth of the norm.
_LEAST_LOSS, _LEAST_NORM = 0.01, 0.1
# The median absolute deviation of a normal distribution is its standard deviation over this.
_NORMAL = 1.4826


class Watch:
    """Judges one step's tries. ``memory`` is JSON that the checkpoint keeps, changed in place."""

    def __init__(self, spec: Spikes | None, memory: dict[str, Any], moment: Moment) -> None:
        self.spec, self.memory, self.moment = spec, memory, moment
        # The ledger's account of this step.
        self.events: list[dict[str, Any]] = []
        self.tries = 1 if spec is None else 1 + spec.tries
        scene = [moment.mix, moment.context]
        if spec is not None and memory.get("scene") != scene:
            # Other data or another context has another loss.
            memory |= {"scene": scene, "losses": [], "norms": []}

    @property
    def first(self) -> int:
        """The running number of the try's first window, behind all that was left out."""
        left_out: int = self.memory.get("left_out", {}).get(self.moment.mix, 0)
        return self.moment.first + left_out

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether to take the step; if not, its batch is left out and the next try is another's.

        After ``tries`` batches in a row it is not the data's fault, and the step is taken. A loss
        or norm that is no number is never accepted as one: the caller stops there.
        """
        if self.spec is None:
            return True
        rare = self._is_spike(loss, norm)
        last = len(self.events) == self.spec.tries
        if rare:
            windows = 0 if last else self.spec.skip * self.moment.windows
            action = "taken" if last else "replaced" if self.spec.skip == 1 else "skipped"
            event = {"action": action, "window": self.first, "windows": windows}
            # JSON has no word for what is no number.
            values = {"loss": loss, "gradient_norm": norm}
            event |= {key: v if math.isfinite(v) else str(v) for key, v in values.items()}
            self.events.append(event)
            left_out = self.memory.setdefault("left_out", {})
            left_out[self.moment.mix] = left_out.get(self.moment.mix, 0) + windows
        if (not rare or last) and math.isfinite(loss) and math.isfinite(norm) and norm > 0:
            for name, value in (("losses", loss), ("norms", norm)):
                self.memory[name] = [*self.memory[name], value][-self.spec.window :]
        return not rare or last

    def _is_spike(self, loss: float, norm: float) -> bool:
        assert self.spec is not None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        losses, norms = self.memory["losses"], self.memory["norms"]
        if len(losses) < self.spec.window // 4:
            return False
        least = _LEAST_LOSS * abs(statistics.median(losses))
        return (
            _deviations(loss, losses, least) > self.spec.threshold
            # Norms vary by factors.
            or _deviations(math.log(max(norm, 1e-30)), [math.log(n) for n in norms], _LEAST_NORM)
            > self.spec.threshold
        )


def _deviations(value: float, recent: list[float], least: float) -> float:
    """How many robust standard deviations above the median."""
    middle = statistics.median(recent)
    spread = _NORMAL * statistics.median(abs(v - middle) for v in recent)
    return (value - middle) / max(spread, least)


def shrink_embedding_gradient(model: Decoder, share: float) -> None:
    """e <- a e + (1 - a) stopgrad(e), a = ``share`` (GLM-130B, arXiv:2210.02414): the embeddings
    stay what they are, and learn from a ``share`` of their gradient."""

    def shrink(_: Any, __: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda grad: grad * share)

    model.embedding.register_forward_hook(shrink)
