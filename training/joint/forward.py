"""Run the sides of a batch through the model, and compute the loss of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import get_device_states, set_device_states

from mmemb_r1.modeling.backbones_mmemb_r1 import is_per_token
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.paths_mmemb_r1 import reading_places
from mmemb_r1.training.direct_anchor import detached_direct
from mmemb_r1.training.distributed import gather_rows, greatest, num_processes, process_index, summed
from mmemb_r1.training.gate import gate_loss
from mmemb_r1.training.joint.collator import IGNORED, Chunk, JointBatch, SideBatch
from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.joint.losses import PathBatch, PathTerms, path_terms, rationale_loss
from mmemb_r1.training.joint.metrics import batch_metrics, blame, utility_gap


class Vectors(NamedTuple):
    """Hold what the contrastive terms and the gate's are made of, for U inputs and K paths."""

    embeddings: Tensor  # (U, K, D)
    path_mask: Tensor  # (U, K) bool, which of them exist
    gate_logits: Tensor  # (U, K) of the decision after each


def encode(model: nn.Module, chunk: Chunk, with_tokens: bool = True) -> tuple[Vectors, Tensor]:
    """
    Run b inputs through the model, or the model with adapters; the gate's loss reaches nothing but the gate.

    Returns:
        Their vectors, and `(N,)` log-probabilities of the rationale tokens, if they are wanted.
    """
    device = next(model.parameters()).device
    features = {name: value.to(device, non_blocking=True) for name, value in chunk["features"].items()}
    if not with_tokens:
        features["labels"] = torch.full_like(features["labels"], IGNORED)
    output = model(**features, detach_gate=True)
    return Vectors(output.embeddings, output.path_mask, output.gate_logits), output.rationale_logps


@torch.no_grad()
def encode_directly(model: MMEmbR1Model, chunk: Chunk) -> Tensor:
    """Embed b inputs directly, `(b, D)`, without gradient; of their rationales as little is read as can be."""
    features = chunk["features"]
    ids = features["input_ids"]
    places = reading_places(model.config, ids, features["attention_mask"])
    width = int(places.long().argmax(dim=1).max()) + 1  # the longest prompt
    prompts = {name: value[:, :width] if is_per_token(value, ids) else value for name, value in features.items()}
    return encode(model, {**chunk, "features": prompts}, with_tokens=False)[0].embeddings[:, 0]


def in_order(side: SideBatch, parts: list[Vectors]) -> Vectors:
    """Put the vectors of a side's chunks into the order of its inputs."""
    paths = max(part.path_mask.shape[1] for part in parts)
    order = side["order"].to(parts[0].embeddings.device)

    def joined(name: str) -> Tensor:
        filled = []
        for part in parts:
            value = getattr(part, name)  # (b, k) or (b, k, D)
            extra = paths - value.shape[1]
            filled.append(functional.pad(value, (0, 0) * (value.ndim - 2) + (0, extra)))  # (b, K) or (b, K, D)
        return torch.cat(filled)[order]

    return Vectors(*(joined(name) for name in Vectors._fields))


class RandomState(NamedTuple):
    """Hold the state of the random generators that dropout reads, on the CPU and on one device."""

    cpu: Tensor
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, device: torch.device) -> RandomState:
        """Read the present state."""
        return cls(torch.get_rng_state(), *get_device_states(torch.empty(0, device=device)))

    @contextmanager
    def restored(self, device: torch.device) -> Iterator[None]:
        """Return to that state for the length of a block."""
        with torch.random.fork_rng(self.devices, device_type=device.type if self.devices else "cuda"):
            torch.set_rng_state(self.cpu)
            set_device_states(self.devices, self.states, device_type=device.type)
            yield


SIDES = ("query", "target")


def contrastive_loss(
    vectors: Mapping[str, Vectors], batch: JointBatch, args: JointConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Compute the contrastive terms over the pairs of paths, and the gate's, of the inputs of this process.

    Returns:
        The loss of the batch of all processes, and numbers to log (see [`batch_metrics`]). Its gradient reaches this
        process's own rows, scaled so that the mean of the processes' gradients is that of the whole batch. A loss that
        is not finite is a `FloatingPointError`, which names the term and the rows.
    """
    device = vectors["query"].embeddings.device
    if args.direct_anchor is not None:
        vectors = {name: one._replace(embeddings=detached_direct(one.embeddings)) for name, one in vectors.items()}
    query, target = (Vectors(*(one[batch[name]["index"].to(device)] for one in vectors[name])) for name in SIDES)
    paths = _gathered(query, target, batch, hard_negatives=bool(args.num_hard_negatives))
    gate_logits = gather_rows(query.gate_logits[:, 0])
    weights, width = args.path_weights, paths.queries.shape[-1]
    terms = path_terms(
        paths,
        [pair for pair, weight in weights.items() if weight or pair in ((0, 0), (1, 0))],  # these two are logged
        args.temperature,
        [width, *(args.matryoshka_dims or [])],
        args.score_mask_margin,
        args.similarity_chunk_size,
        args.symmetric_loss,
        args.one_sided_reasoning,
    )
    loss = paths.queries.sum() * 0.0  # there may be no term: no rationale in the batch, and no weight on (0, 0)
    for (_, a, b), term in terms.at.items():
        if weights[a, b]:
            loss = loss + weights[a, b] * term.loss
    metrics = batch_metrics(terms, gate_logits.detach(), args.gate_cost)
    reasoned = terms.at.get((width, 1, 0))
    if args.gate_weight and reasoned is not None:
        rows = reasoned.valid
        gap = utility_gap(terms.at[width, 0, 0], reasoned)
        metrics["gate"] = gate_loss(gate_logits[rows], gap[rows], args.gate_cost)
        loss = loss + args.gate_weight * metrics["gate"]
    if not bool(loss.isfinite()):
        raise _not_finite(vectors, batch, terms)
    # every process has the whole loss, but the gradients of its own rows alone: their mean has to be their sum
    return loss + (num_processes() - 1) * (loss - loss.detach()), metrics


def fill_up(batch: JointBatch, device: torch.device) -> None:
    """
    Repeat a side's smallest chunk, without weight, until every process has as many chunks as the one with the most.

    Processes that share the weights of a model wait for each other in each forward pass. Vectors of such a chunk stand
    behind those of all inputs, where no row looks for them.
    """
    wanted = greatest(torch.tensor([len(batch[name]["chunks"]) for name in SIDES], device=device)).tolist()
    for name, number in zip(SIDES, wanted, strict=True):
        chunks = batch[name]["chunks"]
        smallest = min(chunks, key=lambda chunk: chunk["features"]["input_ids"].numel())
        weights, num_rows = (torch.zeros_like(of) for of in (smallest["token_weights"], smallest["num_rows"]))
        idle: Chunk = {**smallest, "token_weights": weights, "num_rows": num_rows}
        chunks.extend([idle] * (number - len(chunks)))


def token_totals(batch: JointBatch, device: torch.device) -> dict[str, float]:
    """Sum the weights of the rationale tokens of all processes, for each side; 1 where there is none."""
    sums = [sum(float(chunk["token_weights"].sum()) for chunk in batch[name]["chunks"]) for name in SIDES]
    totals = summed(torch.tensor(sums, device=device)).tolist()
    return {name: total or 1.0 for name, total in zip(SIDES, totals, strict=True)}


def token_loss(side: SideBatch, chunk: Chunk, logps: Tensor, total: float) -> Tensor:
    """
    Compute a chunk's share of the loss on the rationale tokens of its side, whose weights sum to `total`.

    A share that is not finite is a `FloatingPointError`, which names the rows.
    """
    share = rationale_loss(logps, chunk["token_weights"].to(logps.device), total)
    if not bool(share.isfinite()):
        bad = chunk["token_rows"][~logps.isfinite().cpu()].unique().tolist()
        raise blame("the loss on rationale tokens", [side["names"][row] for row in bad])
    return share


def _gathered(query: Vectors, target: Vectors, batch: JointBatch, hard_negatives: bool) -> PathBatch:
    """Gather the rows of all processes; their queries and targets stand in the same order."""
    size, device = len(query.embeddings), query.embeddings.device
    keys = batch["target"]["keys"].to(device)
    negatives, negative_keys = target.embeddings[size:, 0], keys[size:]
    return PathBatch(
        queries=gather_rows(query.embeddings),
        query_paths=gather_rows(query.path_mask),
        targets=gather_rows(target.embeddings[:size]),
        target_paths=gather_rows(target.path_mask[:size]),
        negatives=gather_rows(negatives) if hard_negatives else negatives,
        query_keys=gather_rows(batch["query"]["keys"].to(device)),
        target_keys=gather_rows(keys[:size]),
        negative_keys=gather_rows(negative_keys) if hard_negatives else negative_keys,
    )


def _not_finite(vectors: Mapping[str, Vectors], batch: JointBatch, terms: PathTerms) -> FloatingPointError:
    """Find the embedding or, where all of these are finite, the term that is not finite, and the rows it is of."""
    size = len(batch["query"]["index"])
    sizes = gather_rows(torch.tensor([size], device=terms.num_negatives.device))  # all processes have the same loss
    start = int(sizes[: process_index()].sum())
    for name in SIDES:
        bad = ~vectors[name].embeddings.isfinite().all(dim=-1).all(dim=-1)  # (U,)
        if bool(bad.any()):
            names = batch[name]["names"]
            return blame("the embedding", [names[row] for row in bad.nonzero().flatten().tolist()])
    query = batch["query"]
    for (dim, a, b), term in terms.at.items():
        if not bool(term.loss.isfinite()):
            bad = ~term.losses.isfinite() & term.valid  # (B,)
            own = query["index"][bad[start : start + size].nonzero().flatten().cpu()]
            return blame(f"the contrastive term nce_{a}{b} at {dim} dimensions", [query["names"][row] for row in own])
    silent = ~vectors["query"].gate_logits[:, 0].isfinite()  # (U,)
    return blame("the gate's loss", [query["names"][row] for row in silent.nonzero().flatten().tolist()])
