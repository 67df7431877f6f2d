"""Hold direct embeddings close to those of the model that training began with, so that an index stays valid."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.training.adapters import as_merged
from mmemb_r1.training.base_trainer import PhaseTrainer
from mmemb_r1.training.distributed import (
    evaluating,
    gather_rows,
    greatest,
    num_processes,
    process_index,
    summed,
    unwrapped,
    without_adapters,
)
from mmemb_r1.training.first_model import FirstModel
from mmemb_r1.training.tables import StoredInputs, plain_column
from mmemb_r1.training.targets import embed_directly

logger = logging.getLogger(__name__)
SCALINGS = 8  # measurements, each of which halves what is not known of the scale


def cosine_distance(vectors: Tensor, first: Tensor) -> Tensor:
    """
    Compute 1 - cosine `(N,)` float32 of vectors `(N, D)`, exactly also where the two are all but equal.

    >>> cosine_distance(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.4000])
    """
    return (normalize(vectors.float(), dim=-1) - normalize(first.float(), dim=-1)).square().sum(dim=-1) / 2


def anchor_penalty(distance: Tensor, least: float) -> Tensor:
    """
    Penalise direct embeddings for the distance 1 - cosine `(N,)` to what they were at first: `(N,)`.

    Half of the distance that `least`, the least cosine, allows is free, so that inputs that are not trained on stay
    within it too; from there the penalty grows with the square, and is 1/4 at the bound. Source: ours.

    >>> anchor_penalty(torch.tensor([0.0, 0.05, 0.1, 0.2]), least=0.9)
    tensor([0.0000, 0.0000, 0.2500, 2.2500])
    """
    return (distance / (1 - least) - 0.5).clamp(min=0).square()


def detached_direct(embeddings: Tensor) -> Tensor:
    """
    Cut the gradient of direct embeddings, the first of each input's K `(B, K, D)`: reasoned ones learn their space,
    and nothing but the penalty moves them.
    """
    return torch.cat([embeddings[:, :1].detach(), embeddings[:, 1:]], dim=1)


class Moved(NamedTuple):
    """Hold how far direct embeddings of `number` inputs are from what they were: their cosines."""

    number: int
    mean: float
    least: float
    where: int  # which input has the least


class DirectAnchor:
    """
    Hold the direct embeddings of a model with adapters close to what they were when training began.

    Args:
        first: the model as it was.
        least: the least cosine that is allowed between a direct embedding now and then.
        weight: of the penalty in the loss.
        pairs: held-out pairs, on whose queries and targets it is measured whether the bound is kept.
    """

    def __init__(self, first: FirstModel, least: float, weight: float, pairs: Dataset) -> None:
        self.first, self.least, self.weight = first, least, weight
        self._pairs = pairs
        self._sides = {side: StoredInputs(pairs, side) for side in ("query", "target")}
        self._before: Tensor | None = None  # (n, D) first embeddings of this process's inputs
        self._seen: list[Tensor] = []  # (3, b) since the last log: numbers of rows, their distances, and one's

    def embed(self, batch: Mapping[str, Any]) -> Tensor:
        """Embed a batch of B prompts as the first model does, directly: `(B, D)`."""
        with self.first.run() as first:
            return first.embed(**batch, reasoning="never")["embeddings"]

    def loss(self, vectors: Tensor, first: Tensor, total: float, counts: Tensor | None = None) -> Tensor:
        """
        Compute the share that direct embeddings `(b, D)` have in the loss of a batch of `total` rows, and remember how
        far they are from the `first` ones `(b, D)`, for the log, if this is a step of training.

        Args:
            counts: `(b,)` how many rows each is of. Default: one.
        """
        distance = cosine_distance(vectors, first)  # (b,)
        counts = torch.ones_like(distance) if counts is None else counts.to(distance)
        if distance.requires_grad:
            self._seen.append(torch.stack([counts, counts * distance.detach(), distance.detach()]))
        return self.weight * (counts * anchor_penalty(distance, self.least)).sum() / total

    def take(self, device: torch.device) -> dict[str, float]:
        """Return mean and least cosine of the rows that all processes trained on since the last call."""
        counts, weighted, distances = torch.cat([torch.zeros(3, 1, device=device), *self._seen], dim=1)
        self._seen.clear()
        number, total = summed(torch.stack([counts.sum(), weighted.sum()])).tolist()
        furthest = float(greatest(distances.amax()))
        return {"direct_cosine": 1 - total / number, "direct_cosine_least": 1 - furthest} if number else {}

    def measure(self, wrapped: Any, processor: Any, batch_size: int) -> Moved:
        """
        Embed the held-out inputs directly, as the present model with its adapters will when they are merged, and as
        the first one does; all processes share the inputs.
        """
        model = without_adapters(wrapped)
        if self._before is None:
            with self.first.run() as first:
                self._before = self._embed(first, processor, batch_size)
        with evaluating(model), as_merged(wrapped):
            now = self._embed(model, processor, batch_size)
        numbers = gather_rows(torch.tensor(self._own, dtype=torch.long, device=model.device))
        cosines = 1 - gather_rows(cosine_distance(now, self._before).to(model.device))
        where = int(cosines.argmin())
        return Moved(len(cosines), float(cosines.mean()), float(cosines[where]), int(numbers[where]))

    def scale_down(self, measure: Callable[[], Moved]) -> tuple[Moved, float]:
        """
        Scale down what training changed of the weights, but of the gate, until the bound is kept.

        Returns:
            What `measure` finds then, and the share of the change that is left, to 1/256. If it is none, the weights
            are as trained again.
        """
        trained, kept, lost = self.first.trained(), 0.0, 1.0
        for _ in range(SCALINGS):
            share = (kept + lost) / 2
            self.first.blend(trained, share)
            kept, lost = (share, lost) if measure().least >= self.least else (kept, share)
        self.first.blend(trained, kept or 1.0)
        return measure(), kept

    @property
    def _own(self) -> list[int]:
        """Numbers of the inputs of this process, targets behind queries."""
        return list(range(2 * len(self._pairs)))[process_index() :: num_processes()]

    def _embed(self, model: MMEmbR1Model, processor: Any, batch_size: int) -> Tensor:
        """Embed this process's inputs: `(n, D)` float32 on the CPU."""
        own, size = self._own, len(self._pairs)
        parts = []
        with progress_bar(False) as bar, step_of(bar, "direct embeddings of held-out pairs", len(own)) as advance:
            for start in range(0, len(own), batch_size):
                some = [divmod(number, size) for number in own[start : start + batch_size]]
                inputs = [self._sides[("query", "target")[side]][row] for side, row in some]
                parts.append(embed_directly(model, processor, inputs, batch_size).float().cpu())
                advance(len(inputs))
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def name(self, number: int) -> str:
        """Name an input of the held-out pairs, for messages."""
        side, row = divmod(number, len(self._pairs))
        ids = plain_column(self._pairs, "pair_id") if "pair_id" in self._pairs.column_names else None
        return f"the {('query', 'target')[side]} of {f'row {row}' if ids is None else f'pair {ids[row]!r}'}"


class AnchoredTrainer(PhaseTrainer):
    """
    Mixed into the trainer of a phase, before TRL's. With an `anchor` it logs how far direct embeddings moved, measures
    it on held-out pairs in each evaluation and when training ends, and then refuses a model that moved too far.
    """

    anchor: DirectAnchor | None = None
    processing_class: Any

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the cosines of what was trained on as well."""
        if self.anchor is not None and self.model.training:
            logs = {**logs, **self.anchor.take(self.accelerator.device)}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, and measure how far direct embeddings of the held-out pairs moved."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
        if self.anchor is not None:
            moved = self._moved(self.anchor)
            output.metrics[f"{metric_key_prefix}_direct_cosine"] = moved.mean
            output.metrics[f"{metric_key_prefix}_direct_cosine_least"] = moved.least
        return output

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a `ValueError` at the end if direct embeddings moved farther than `direct_anchor` allows."""
        result = super().train(*args, **kwargs)
        if self.anchor is None:
            return result
        self.facts["direct embeddings"] = self._kept(self.anchor)
        return result

    def _kept(self, anchor: DirectAnchor) -> str:
        """Tell how far direct embeddings moved, after they were moved back if that is wanted; or refuse it."""
        moved, scaled, bound = self._moved(anchor), "", f"allowed {anchor.least:g}"
        if moved.least < anchor.least and self.args.direct_anchor_exact:
            moved, share = anchor.scale_down(lambda: self._moved(anchor))
            scaled = f", with {share:.1%} of what training changed of the weights"
            if self.accelerator.is_main_process:
                logger.warning("Direct embeddings moved too far (%s): training ends%s.", bound, scaled)
        told = f"{moved.least:.6f} ({moved.number:,} queries and targets of held-out pairs; mean {moved.mean:.6f})"
        if moved.least < anchor.least:
            raise ValueError(self._refusal(told, anchor, moved))
        return f"least cosine to those before training {told}{scaled}; {bound}"

    def _refusal(self, told: str, anchor: DirectAnchor, moved: Moved) -> str:
        exact = "direct_anchor_exact, or "
        if self.args.direct_anchor_exact:
            exact, told = "", f"{told}, and hardly anything of what was trained would be left where it is kept"
        return (
            "Direct embeddings moved: the least cosine to what they were before training, for "
            f"{anchor.name(moved.where)}, is {told}; direct_anchor={anchor.least:g} allows no less. The trained model "
            f"was not saved; the checkpoints of this run, if it kept some, are in {self.args.output_dir}. With {exact}"
            "a lower direct_anchor, and --accept-changes, the same command goes on from the last of them. Or train "
            f"again, in another folder, with a larger direct_anchor_weight (now {anchor.weight:g}), fewer steps, a "
            "lower learning rate or smaller adapters."
        )

    def _moved(self, anchor: DirectAnchor) -> Moved:
        with self.accelerator.autocast():
            size = self.args.per_device_eval_batch_size
            return anchor.measure(unwrapped(self.model), self.processing_class, size)
