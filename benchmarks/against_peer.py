"""
Thinking for every input through our engine against the nearest peer's way (`engine/peer.py`), in alternation in one
run: how much faster, with how much less memory, and how much of the decoding is of use.

    python -m benchmarks.against_peer [--model runs/quickstart/model | --random-100m] [--inputs 128] [--batch-size 32]
        [--read-size 32] [--decode-batch-size 128] [--repeats 3] [--output against_peer.json]

Rationales are of skewed lengths, the same on both sides: the median is 20 tokens, the longest have 200. Both sides are
given the same processed inputs (the peer as they come, ours sorted by length, as `encode` does), have to write the
same tokens, and give the same vectors to 1e-4 (in float32). Decode steps that pad rows which are done are of no use.
The peer reads, and decodes, `--batch-size` rows at once. Ours reads `--read-size` and decodes `--decode-batch-size`.
Memory is the peak above the loaded model; each side runs in a process of its own for that (Linux), unless the device
is a CUDA one. Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.engine.memory import MIB, apart, peak_above
from benchmarks.engine.peer import CONTROL_TOKENS, Written, embed_as_peer, without_end
from benchmarks.engine.report import save, show, verdict
from benchmarks.engine.subject import Subject, add_arguments
from benchmarks.engine.timing import alternating, ratio
from benchmarks.engine.workload import inputs_of, skewed_lengths
from mmemb_r1 import MMEmbR1, MMEmbR1Model
from mmemb_r1.encoding import DECODED_PER_READ, input_sizes, plan_batches
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.modeling.decoding_mmemb_r1 import DecodingStatistics
from mmemb_r1.modeling.outputs_mmemb_r1 import MMEmbR1EmbedOutput

PEER, ACROSS, WITHIN = "peer", "ours, across batches", "ours, within a batch"
SIDES = (PEER, ACROSS, WITHIN)
TOLERANCE = 1e-4
FASTER, MEMORY, USEFUL = 3.0, 1 / 3, 0.9  # wanted
Batches = list[tuple[dict[str, Any], list[int]]]


class Sizes(NamedTuple):
    """Rows that the peer reads and decodes at once, that ours reads, and that ours decodes."""

    batch: int
    read: int
    decoded: int


def plan_of(name: str, model: MMEmbR1, values: Sequence[Any], sizes: Sizes) -> list[list[int]]:
    """Plan which inputs are read together: by the peer as they come, in `encode` those of similar length."""
    if name == PEER:
        places = range(len(values))
        return [list(places[start : start + sizes.batch]) for start in range(0, len(values), sizes.batch)]
    measured = input_sizes(values, model.processor, model[0].model.config)
    return plan_batches(measured, sizes.read if name == ACROSS else sizes.batch)


def batches_of(name: str, model: MMEmbR1, subject: Subject, inputs: int, sizes: Sizes) -> Batches:
    """Make the batches of one side, with the budgets of their rows."""
    values, lengths = inputs_of(subject, inputs), skewed_lengths(inputs, subject.seed)
    places = plan_of(name, model, values, sizes)
    read = (model_inputs(model.preprocess([values[place] for place in part])) for part in places)
    return [
        (
            {key: value.to(model.device) if hasattr(value, "to") else value for key, value in batch.items()},
            [lengths[place] for place in part],
        )
        for batch, part in zip(read, places, strict=True)
    ]


@torch.inference_mode()
def ours(
    model: MMEmbR1Model, batches: Batches, decode_batch_size: int | None, statistics: DecodingStatistics | None = None
) -> list[MMEmbR1EmbedOutput]:
    """Through the engine: all batches in one call, or a call for each if no `decode_batch_size` is given."""
    given = [{**batch, "max_reasoning_tokens": budgets} for batch, budgets in batches]
    calls = [[one] for one in given] if decode_batch_size is None else [given]
    return [
        output
        for call in calls
        for output in model.embed_batches(
            call, reasoning="always", decode_batch_size=decode_batch_size, statistics=statistics
        )
    ]


def side_of(name: str, model: MMEmbR1Model, batches: Batches, sizes: Sizes) -> Callable[[], Any]:
    """What one side does with all batches."""
    if name == PEER:
        return lambda: [embed_as_peer(model, *batch) for batch in batches]
    return lambda: ours(model, batches, sizes.decoded if name == ACROSS else None)


def peak(subject: Subject, name: str, inputs: int, sizes: Sizes) -> int:
    """
    Bytes that one side takes at most above the loaded model and its inputs; after a run of a few batches in this
    process, so that what is taken once and for all is not counted.
    """
    model = subject.load()
    batches = batches_of(name, model, subject, inputs, sizes)
    few = batches[:: max(len(batches) // 4, 1)]
    with without_end(model[0].model):
        side_of(name, model[0].model, few, sizes)()
        return peak_above(side_of(name, model[0].model, batches, sizes), subject.device)


def require_same(peers: list[Written], outputs: list[MMEmbR1EmbedOutput], places: list[int]) -> float:
    """
    How far vectors differ; a ValueError if they are not the same, or tokens aren't. `places` are those of our rows
    among the peer's.
    """
    drawn = [[token for token in row if token >= 0] for output in outputs for row in output.rationale_ids.tolist()]
    written = [row for peer in peers for row in peer.rationales]
    if drawn != [written[place] for place in places]:
        raise ValueError("The two sides wrote different tokens.")
    vectors = (
        torch.cat([output.embeddings for output in outputs]),
        torch.cat([peer.embeddings for peer in peers])[places],
    )
    apart = float((vectors[0] - vectors[1]).abs().max())
    if apart > TOLERANCE:
        raise ValueError(f"Vectors of the two sides differ by {apart:.1e}; allowed: {TOLERANCE}.")
    return apart


def run(
    subject: Subject,
    *,
    inputs: int = 128,
    batch_size: int = 32,
    read_size: int | None = None,
    decode_batch_size: int | None = None,
    repeats: int = 3,
    memory: bool = True,
) -> dict[str, Any]:
    """
    Measure both sides.

    Args:
        subject: the model.
        inputs: how many are embedded.
        batch_size: rows of a batch of the peer.
        read_size: rows of a prefill of ours. Default: as many.
        decode_batch_size: rows that think at the same time, of ours. Default: as in `encode`.
        repeats: rounds.
        memory: whether memory is measured, too.

    Raises:
        ValueError: if the sides do not agree, in float32.
    """
    sizes = Sizes(batch_size, read_size or batch_size, decode_batch_size or DECODED_PER_READ * batch_size)
    model, values = subject.load(), inputs_of(subject, inputs)
    batches = {name: batches_of(name, model, subject, inputs, sizes) for name in SIDES}
    lengths = [length for _, budgets in batches[PEER] for length in budgets]
    kept = sum(lengths) + CONTROL_TOKENS * inputs
    sides: dict[str, dict[str, Any]] = {name: {} for name in SIDES}
    with without_end(model[0].model):
        peers = [embed_as_peer(model[0].model, *batch) for batch in batches[PEER]]
        steps = sum(peer.steps for peer in peers)
        run_by_peer = sum(peer.steps * len(peer.embeddings) for peer in peers)
        sides[PEER] |= {"steps": steps, "row_steps": run_by_peer}
        for name, size in ((ACROSS, sizes.decoded), (WITHIN, None)):
            statistics_ = DecodingStatistics()
            outputs = ours(model[0].model, batches[name], size, statistics_)
            sides[name] |= {"steps": statistics_.steps, "row_steps": statistics_.row_steps}
            if subject.dtype == "float32":  # otherwise rounding makes rationales part
                places = [place for part in plan_of(name, model, values, sizes) for place in part]
                sides[name]["apart"] = require_same(peers, outputs, places)
        del peers, outputs
        calls = {name: side_of(name, model[0].model, batches[name], sizes) for name in SIDES}
        times = alternating(calls, repeats, subject)
    for name, side in sides.items():
        side |= {
            "seconds": statistics.median(times[name]),
            "faster": ratio(times[PEER], times[name]),
            "useful": kept / side["row_steps"],
            "rows_per_step": side["row_steps"] / side["steps"],
        }
    if memory:
        for name, side in sides.items():
            side["peak_bytes"] = apart(peak, subject, name, inputs, sizes)
        for side in sides.values():
            side["memory_share"] = side["peak_bytes"] / sides[PEER]["peak_bytes"]
    return {
        "subject": subject.name,
        "inputs": inputs,
        "batch_size": sizes.batch,
        "read_size": sizes.read,
        "decode_batch_size": sizes.decoded,
        "lengths": {"median": statistics.median(lengths), "mean": statistics.mean(lengths), "longest": max(lengths)},
        "token_steps_kept": kept,
        "sides": sides,
    }


def show_results(results: dict[str, Any]) -> None:
    lengths = results["lengths"]
    rows = [
        {
            "": name,
            "time": f"{side['seconds']:.2f} s",
            "faster": f"{side['faster']['median']:.2f}x",
            "least": f"{side['faster']['least']:.2f}x",
            "peak memory": f"{side['peak_bytes'] / MIB:.0f} MiB" if "peak_bytes" in side else "-",
            "of peer's": f"{side['memory_share']:.2f}" if "peak_bytes" in side else "-",
            "steps": str(side["steps"]),
            "rows a step": f"{side['rows_per_step']:.1f}",
            "useful": f"{side['useful']:.2f}",
            "apart": f"{side['apart']:.0e}" if "apart" in side else "-",
        }
        for name, side in results["sides"].items()
    ]
    best = results["sides"][ACROSS]
    notes = [
        verdict("times faster", best["faster"]["median"], ">= 3", best["faster"]["median"] >= FASTER),
        verdict("useful share of token steps", best["useful"], ">= 0.9", best["useful"] >= USEFUL),
    ]
    if "memory_share" in best:
        notes.append(verdict("share of memory", best["memory_share"], "<= 1/3", best["memory_share"] <= MEMORY))
    title = (
        f"{results['inputs']} inputs think, peer {results['batch_size']} at once, ours {results['decode_batch_size']} "
        f"(read {results['read_size']}); rationales of {lengths['median']:.0f} tokens (median; longest "
        f"{lengths['longest']}): {results['subject']}"
    )
    show(title, rows, *notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--inputs", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch of the peer")
    parser.add_argument("--read-size", type=int, help="rows of a prefill of ours; default: as many")
    parser.add_argument("--decode-batch-size", type=int, help="rows of ours that think at once; default: as in encode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="measure times only")
    args = parser.parse_args()
    results = run(
        Subject.of(args),
        inputs=args.inputs,
        batch_size=args.batch_size,
        read_size=args.read_size,
        decode_batch_size=args.decode_batch_size,
        repeats=args.repeats,
        memory=args.memory,
    )
    show_results(results)
    save(results, args)


if __name__ == "__main__":
    main()
