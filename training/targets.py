"""Measure the probability of each pair's target among its candidates, for rewards and to compare checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.objective import TEMPERATURE, target_probability
from mmemb_r1.training.candidates import TargetCandidates
from mmemb_r1.training.distributed import gather_rows, num_processes, process_index
from mmemb_r1.training.tables import StoredInputs, check_pairs, tasks_of

if TYPE_CHECKING:
    from mmemb_r1.sentence_transformers import MMEmbR1


class TargetScorer:
    """
    Measure how near a vector of a pair's query is to the pair's target, and to what the target competes with.

    Candidates are embedded directly, without a gradient, when a row first needs them, and once: the processes of a run
    share the work and the vectors, which stay in the memory of the CPU.

    Args:
        pairs, more: tables of pairs, and of further targets; see [`~mmemb_r1.training.candidates.TargetCandidates`].
        temperature: divides the cosine similarities.
        num_candidates: negatives of a query that are drawn from its task. Default: all.
        seed: of the draw.

    Raises:
        ValueError: if a pair has no negative.
    """

    def __init__(
        self,
        pairs: Dataset,
        more: Dataset | None = None,
        temperature: float = TEMPERATURE,
        num_candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        self.temperature = temperature
        self.candidates = TargetCandidates(pairs, more, num_candidates, seed)
        self._num_rows = len(pairs)
        self._cache: EmbeddingCache | None = None
        self._model = b""
        self.forget()

    def keep_in(self, folder: Path, fingerprint: str) -> None:
        """
        Keep vectors on disk, by the content of the candidates, for a run that goes on. The main process reads and
        writes them.

        Args:
            folder: of the vectors.
            fingerprint: of the model that embeds, which has to stay the same.
        """
        self._cache = EmbeddingCache(folder, private=False) if process_index() == 0 else None
        self._model = fingerprint.encode()

    def forget(self) -> None:
        """Forget the vectors in memory: the model that embeds has changed."""
        self._slots = np.full(len(self.candidates), -1)  # (C,) candidate -> its row in the vectors
        self._vectors = torch.empty(0, 0)

    def embed(
        self, model: MMEmbR1Model, processor: ProcessorMixin, rows: Tensor | None = None, batch_size: int = 64
    ) -> None:
        """
        Embed the candidates of some rows that are not embedded yet. All processes of a run have to call it.

        Args:
            model, processor: what embeds, in eval mode.
            rows: `(N,)` of `pairs`. Default: all.
            batch_size: inputs that are read at once.
        """
        wanted = range(self._num_rows) if rows is None else dict.fromkeys(rows.tolist())
        missing = {number for row in wanted for number in self.candidates.of(row) if self._slots[number] < 0}
        device = model.device
        everywhere = gather_rows(torch.tensor(sorted(missing), dtype=torch.long, device=device))
        missing = set(everywhere.tolist())
        if not missing:
            return
        self._add(*self._stored(missing, device))
        left = sorted(number for number in missing if self._slots[number] < 0)
        own = left[process_index() :: num_processes()]
        vectors = embed_directly(model, processor, _Chosen(self.candidates, own), batch_size).float()
        numbers, vectors = gather_rows(torch.tensor(own, dtype=torch.long, device=device)), gather_rows(vectors)
        self._add(numbers, vectors)
        if self._cache is not None and len(numbers):
            kept = zip(numbers.tolist(), vectors.cpu(), strict=True)
            self._cache.put({self._key(number): {"embedding": vector} for number, vector in kept})

    def _stored(self, missing: set[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Read what the main process finds on disk: numbers `(n,)` and vectors `(n, D)`, in all processes."""
        numbers, vectors = [], []
        if self._cache is not None:
            order = sorted(missing)
            for number, found in zip(order, self._cache.get([self._key(one) for one in order]), strict=True):
                if found is not None:
                    numbers.append(number)
                    vectors.append(found["embedding"])
        stacked = torch.stack(vectors).to(device) if vectors else torch.empty(0, 0, device=device)
        return gather_rows(torch.tensor(numbers, dtype=torch.long, device=device)), gather_rows(stacked)

    def _key(self, number: int) -> bytes:
        return blake2b(self._model + b"\n" + self.candidates.keys[number], digest_size=32).digest()

    def _add(self, numbers: Tensor, vectors: Tensor) -> None:
        if len(numbers):
            size = len(self._vectors)
            self._slots[numbers.cpu().numpy()] = np.arange(size, size + len(numbers))
            vectors = vectors.to("cpu", torch.float32)
            self._vectors = torch.cat([self._vectors, vectors]) if size else vectors

    def similarities(self, row: int, vectors: Tensor) -> Tensor:
        """
        Compute the cosine similarities `(n, C)` of unit vectors `(n, D)` to the candidates of one row, its target
        first. Gradients reach the vectors. Candidates that are not embedded are a `ValueError`.
        """
        slots = self._slots[self.candidates.of(row)]
        if (slots < 0).any():
            raise ValueError(f"The candidates of row {row} are not embedded yet; call embed first.")
        return vectors.float() @ self._vectors[slots].to(vectors.device).T

    def log_probability(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """
        Compute the log-probability `(N,)` of the targets of rows `(N,)` of the pairs for unit vectors `(N, D)`.

        Gradients reach the vectors. Before [`embed`] it is a `ValueError`.
        """
        result = vectors.new_zeros(len(rows), dtype=torch.float32)
        for places, scores in self._by_row(rows, vectors):
            result[places] = self._log_probability(scores)
        return result

    def _log_probability(self, scores: Tensor) -> Tensor:
        """Compute `(n,)` from similarities `(n, C)`, the target's first."""
        target = scores.new_zeros(len(scores), dtype=torch.long)
        return target_probability(scores / self.temperature, target, temperature=1, log=True)

    @torch.no_grad()
    def measures(self, rows: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        """
        Measure how well vectors `(N, D)` find the targets of rows `(N,)`; every value is `(N,)` float32.

        Returns:
            `target_probability`; `target_cosine`, the similarity to the target; `target_margin`, by how much it is
            above that to the nearest negative; `target_rank`, from 1: negatives that are as near count against it.
        """
        names = ("target_probability", "target_cosine", "target_margin", "target_rank")
        found = {name: vectors.new_zeros(len(rows), dtype=torch.float32) for name in names}
        for places, scores in self._by_row(rows, vectors):
            target, others = scores[:, 0], scores[:, 1:]
            found["target_probability"][places] = self._log_probability(scores).exp()
            found["target_cosine"][places] = target
            found["target_margin"][places] = target - others.amax(dim=1)
            found["target_rank"][places] = 1 + (others >= target[:, None]).sum(dim=1).float()
        return found

    def _by_row(self, rows: Tensor, vectors: Tensor) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the places of the vectors of each row, and their similarities `(n, C)`."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(rows.tolist()):
            places[row].append(place)
        for row, own in places.items():
            yield own, self.similarities(row, vectors[own])


class _Chosen(Sequence[Any]):
    """Read some of the candidates when they are asked for."""

    def __init__(self, candidates: TargetCandidates, numbers: Sequence[int]) -> None:
        self._candidates, self._numbers = candidates, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            return [self._candidates[number] for number in self._numbers[places]]
        return self._candidates[self._numbers[places]]


@torch.no_grad()
def embed_directly(
    model: MMEmbR1Model, processor: ProcessorMixin, inputs: Sequence[Any], batch_size: int = 64
) -> Tensor:
    """Embed inputs directly: `(N, D)`, on the model's device; `(0, 0)` where there are none."""
    if not len(inputs):
        return torch.empty(0, 0, device=model.device)
    parts = []
    for start in range(0, len(inputs), batch_size):
        conversations = to_conversations(inputs[start : start + batch_size], media=MediaOptions.of(model.config))
        config = model.config
        batch = render(processor, conversations, config.max_text_tokens, max_image_tokens=config.max_image_tokens).to(
            model.device
        )
        parts.append(model.embed(**batch, reasoning="never")["embeddings"])
    return torch.cat(parts)


def validation_score(model: MMEmbR1, pairs: Dataset, batch_size: int = 32) -> float:
    """
    Score a checkpoint by one number, by which it is preferred to another: the mean over the tasks of the mean target
    probability, among the targets of its task and its own negatives, of queries that reason where the gate says so
    [ours]. A pair without a negative is a `ValueError`.

    It moves with every pair, unlike the share of targets that come first, and a model that gives everything the same
    vector scores 1 / candidates.
    """
    check_pairs(pairs, ("query", "target"))
    scorer = TargetScorer(pairs)
    scorer.embed(model[0].model, model[0].processor, batch_size=batch_size)
    queries = list(StoredInputs(pairs, "query"))
    vectors = model.encode(queries, reasoning="auto", batch_size=batch_size, convert_to_tensor=True)  # (N, D)
    probabilities = scorer.log_probability(torch.arange(len(pairs)), vectors).exp().tolist()
    of_task: dict[str, list[float]] = defaultdict(list)
    for task, probability in zip(tasks_of(pairs), probabilities, strict=True):
        of_task[task].append(probability)
    return sum(sum(values) / len(values) for values in of_task.values()) / len(of_task)
