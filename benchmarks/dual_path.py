"""
What thinking and embedding in one pass saves, forward and backward, over the same pairs with rationales on both sides,
in alternation in one run:

1. *single path*: `prompt <|embed|> <think> r </think> <|embed|>` once; the contrastive loss on the last vector alone,
   and the loss on the rationale;
2. *dual path*: a step of the joint phase. The same sequences once; contrastive losses between both vectors of both
   sides, and the loss on the rationale;
3. *naive*: the losses of the dual path from two passes, one over the prompt for its vector, one over the sequence.

    python -m benchmarks.dual_path [--pairs 32] [--repeats 9] [--model DIR] [--output dual_path.json]

Dual path and naive have to give the same loss and gradients to 1e-3 of the greatest. Prints a table of times and of
their ratios to the single path; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.facts import write_facts
from benchmarks.random_pairs import Kind, joint_trainer, loaded, one_batch, random_pairs
from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.backbones_mmemb_r1 import rotary_positions
from mmemb_r1.training import JointTrainer
from mmemb_r1.training.joint.forward import (
    SIDES,
    JointBatch,
    Vectors,
    contrastive_loss,
    encode,
    in_order,
    token_loss,
    token_totals,
)

# The first two are like Atlas.
KINDS = {"text": Kind(0, 12, 16), "small picture": Kind(64, 8, 16), "large picture": Kind(320, 8, 16)}
IMAGE_SIZE = 320  # up to 100 tokens for a picture
TOLERANCE = 1e-3


def last_vector(model: MMEmbR1Model, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a model of one path makes of complete sequences: `(b, D)` vectors, `(N,)` log-probabilities."""
    media = {key: value for key, value in features.items() if key not in ("input_ids", "attention_mask", "labels")}
    inputs = {key: features[key] for key in ("input_ids", "attention_mask")}
    position_ids, _ = rotary_positions(model.vlm, *inputs.values(), media)
    hidden = model.vlm.base_model(
        **inputs, **media, position_ids=position_ids, use_cache=False, return_dict=True
    ).last_hidden_state
    vectors = model.embedding_head(model.embedding_head.pool(hidden, inputs["attention_mask"].bool()).mean)
    labels = features["labels"][:, 1:]
    wanted = labels != -100  # (b, S - 1): position i predicts token i + 1
    logits = model.get_output_embeddings()(hidden[:, :-1][wanted]).float()  # (N, V)
    return vectors, -cross_entropy(logits, labels[wanted], reduction="none")


def from_sequences(trainer: JointTrainer, batch: JointBatch) -> tuple[dict[str, Vectors], Tensor]:
    """Last vectors of each side, as if they were its only ones, and the loss on the rationales."""
    totals = token_totals(batch, trainer.accelerator.device)
    vectors, losses = {}, []
    for name in SIDES:
        side, parts = batch[name], []
        for chunk in side["chunks"]:
            embeddings, logps = last_vector(trainer.model, chunk["features"])
            exists = torch.ones(len(embeddings), 1, dtype=torch.bool)
            parts.append(Vectors(embeddings[:, None], exists, embeddings.new_zeros(len(embeddings), 1)))
            losses.append(token_loss(side, chunk, logps, totals[name]))
        vectors[name] = in_order(side, parts)
    return vectors, trainer.args.rationale_weight * torch.stack(losses).sum()


def sides(trainer: JointTrainer, batch: JointBatch, prompts: JointBatch) -> dict[str, Callable[[], float]]:
    """Each side does a forward and a backward pass and returns its loss."""
    only_last = copy.copy(trainer.args)  # a new one would set accelerate up anew
    only_last.reasoned_direct_weight = only_last.direct_reasoned_weight = only_last.reasoned_reasoned_weight = 0.0

    def backward(loss: Tensor) -> float:
        loss.backward()
        return float(loss.detach())

    def single() -> float:
        vectors, rationale_loss = from_sequences(trainer, batch)
        return backward(contrastive_loss(vectors, batch, only_last)[0] + rationale_loss)

    def dual() -> float:
        return float(trainer.training_step(trainer.model, batch))

    def naive() -> float:
        reasoned, rationale_loss = from_sequences(trainer, batch)
        both = {}
        for name in SIDES:
            side = prompts[name]
            direct = in_order(side, [encode(trainer.model, chunk)[0] for chunk in side["chunks"]])
            pair = zip(direct, reasoned[name], strict=True)
            both[name] = Vectors(*(torch.cat(values, dim=1) for values in pair))
        return backward(contrastive_loss(both, batch, trainer.args)[0] + rationale_loss)

    return {"single": single, "dual": dual, "naive": naive}


def gradients(model: MMEmbR1Model) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def agreement(model: MMEmbR1Model, calls: dict[str, Callable[[], float]]) -> str:
    """Describe how far dual path and naive agree; a ValueError if they do not."""
    found = {}
    for name in ("dual", "naive"):
        model.zero_grad()
        found[name] = calls[name](), gradients(model)
    losses = abs(found["dual"][0] - found["naive"][0]) / abs(found["naive"][0])
    greatest = float((found["dual"][1] - found["naive"][1]).abs().max() / found["naive"][1].abs().max())
    if max(losses, greatest) > TOLERANCE:
        raise ValueError(f"Dual path and naive differ: the loss by {losses:.1e}, gradients by {greatest:.1e}.")
    return f"losses differ by {losses:.0e}, gradients by {greatest:.0e}"


def measure(model: MMEmbR1Model, calls: dict[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Times of all sides, in alternation, and their ratios to the single path within each round."""
    agreed = agreement(model, calls)
    calls["single"]()  # the others are warm already
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for repeat in range(repeats):
        for name in names[repeat % 3 :] + names[: repeat % 3]:
            model.zero_grad()
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    result: dict[str, Any] = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    for name in ("dual", "naive"):
        ratios = [time / single for time, single in zip(times[name], times["single"], strict=True)]
        result[name] = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return {**result, "agreement": agreed}


def tokens(batch: JointBatch) -> int:
    return sum(int(chunk["features"]["attention_mask"].sum()) for name in SIDES for chunk in batch[name]["chunks"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; default: an untrained one of the quickstart's size")
    parser.add_argument("--pairs", type=int, default=32, help="of a batch")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, processor = loaded(args.model, args.seed, image_size=IMAGE_SIZE)
    results = {}
    for kind in KINDS:
        pairs = random_pairs(KINDS[kind], args.pairs, args.seed, task=kind)
        trainer = joint_trainer(model, processor, pairs, batch=args.pairs, seed=args.seed)
        examples = one_batch(trainer)
        batch = trainer.data_collator(examples)
        trainer.data_collator.use_rationales = False
        prompts = trainer.data_collator(examples)
        results[kind] = {
            "tokens": tokens(batch),
            "prompt_tokens": tokens(prompts),
            **measure(model, sides(trainer, batch, prompts), args.repeats),
        }
    report(results, args)


def report(results: dict[str, Any], args: argparse.Namespace) -> None:
    print(
        f"batches of {args.pairs} pairs with rationales on both sides; seconds and ratios to the single path, median"
    )
    heads = [f"{name:>8s}" for name in ("single", "dual", "naive")] + [f"{name:>18s}" for name in ("dual", "naive")]
    print(f"{'':14s} {'prompts':>7s} {'tokens':>7s} {' '.join(heads)}")
    for kind, row in results.items():
        ratios = [
            f"{row[name]['ratio']:.2f} ({row[name]['lowest']:.2f}-{row[name]['highest']:.2f})"
            for name in ("dual", "naive")
        ]
        cells = [f"{row[f'{name}_seconds']:6.2f} s" for name in ("single", "dual", "naive")]
        cells += [f"{ratio:>18s}" for ratio in ratios]
        print(f"{kind:14s} {row['prompt_tokens']:7d} {row['tokens']:7d} {' '.join(cells)}")
        print(f"{'':14s} {row['agreement']}")
    if args.output is not None:
        write_facts(args.output, results, args, kinds={kind: size._asdict() for kind, size in KINDS.items()})


if __name__ == "__main__":
    main()
