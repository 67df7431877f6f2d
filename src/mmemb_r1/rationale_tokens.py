"""Handle rationales as token ids: append them to prompts, replace them by others, embed inputs after given ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from mmemb_r1.encoding import MAX_BATCH_TOKENS, input_sizes, plan_batches
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.locking_mmemb_r1 import tokenizing
from mmemb_r1.modeling.paths_mmemb_r1 import suffix_of_ids
from mmemb_r1.modeling.tokens_mmemb_r1 import as_plain_text, control_strings
from mmemb_r1.seeding import ring_order, ring_position, seeded_random


def rationale_suffix(processor: ProcessorMixin, config: MMEmbR1Config, rationale: str) -> list[int]:
    """Encode a rationale r as `<think> r </think> <|embed|>`; control strings in r become plain text."""
    return suffix_of_ids(config, rationale_ids(processor, rationale))


def rationale_ids(processor: ProcessorMixin, rationale: str) -> list[int]:
    """Encode a rationale without the control tokens around it; control strings in it become plain text."""
    text = as_plain_text(rationale, control_strings(processor))
    with tokenizing():
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def split_rounds(segments: Sequence[str], max_rounds: int) -> list[str]:
    """
    Make rounds of a rationale's segments; what is more than `max_rounds` joins the last.

    >>> split_rounds(["Look.", "Red.", "So red."], 2), split_rounds(["Look."], 2)
    (['Look.', 'Red. So red.'], ['Look.'])
    """
    last = max_rounds - 1
    return [*segments[:last], " ".join(segments[last:])] if len(segments) > last else list(segments)


def append_tokens(
    batch: Mapping[str, Any], suffixes: Sequence[Sequence[int]], pad_token_id: int, padding_side: str = "right"
) -> dict[str, Any]:
    """
    Append token ids to the prompts of a batch.

    Args:
        batch: what the processor returned; tensors of the shape of `input_ids` `(B, S)` are per token.
        suffixes: ids of plain text or control tokens per row, possibly none.
        pad_token_id: fills up rows.
        padding_side: `"right"` or `"left"`.

    Returns:
        The batch with rows one after another without gaps, `(B, S')`; media are left as they are.
    """
    shape, mask = batch["input_ids"].shape, batch["attention_mask"].bool()
    tails = [torch.tensor(suffix, dtype=torch.long) for suffix in suffixes]
    result = dict(batch)
    for key, value in batch.items():
        if not isinstance(value, Tensor) or value.shape != shape:
            continue
        extra = {"input_ids": None, "attention_mask": 1}.get(key, 0)  # suffixes are plain text: token type 0
        rows = [
            torch.cat([row[keep], tail.to(row.dtype) if extra is None else row.new_full((len(tail),), extra)])
            for row, keep, tail in zip(value, mask, tails, strict=True)
        ]
        fill = pad_token_id if key == "input_ids" else 0
        result[key] = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=padding_side)
    return result


class ForcedEmbeddings(NamedTuple):
    """
    Hold what N inputs are embedded as; float32 on the CPU, of unit norm.

    Attributes:
        direct: `(N, D)` vectors before any rationale.
        last: `(N, D)` vectors after the last rationale; the direct ones where there is none.
    """

    direct: Tensor
    last: Tensor


@torch.inference_mode()
def forced_embeddings(
    encoder: SentenceTransformer,
    inputs: Sequence[Any],
    suffixes: Sequence[Sequence[int]],
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    advance: Callable[[int], object] | None = None,
) -> ForcedEmbeddings:
    """
    Embed inputs in one pass each over `prompt <|embed|>` and the ids that are to follow.

    Args:
        encoder: whose first module is the adaptive model.
        inputs: N inputs as for `encode`.
        suffixes: N lists of token ids: none, or whole rationales `<think> r </think> <|embed|>` one after another, see
            `rationale_suffix`.
        prompt: the system turn of inputs that bring none.
        batch_size: inputs at once; fewer if they are long.
        advance: is told of every batch how many inputs it had.

    Raises:
        InputError: a `ValueError` that names the index of an input that can't be embedded.
        ValueError: if there are more or fewer inputs than suffixes, or none.
    """
    if len(inputs) != len(suffixes) or not len(inputs):
        raise ValueError(f"Got {len(inputs)} inputs and {len(suffixes)} suffixes; each input has one, possibly empty.")
    module, device = encoder[0], encoder.device
    sizes = [
        size._replace(tokens=size.tokens + len(suffix))
        for size, suffix in zip(input_sizes(inputs, encoder.processor, module.model.config), suffixes, strict=True)
    ]
    plan = plan_batches(sizes, batch_size, MAX_BATCH_TOKENS)
    direct, last = [], []
    for rows in plan:
        try:
            features = module.preprocess([inputs[row] for row in rows], prompt=prompt)
        except InputError as error:
            raise error.at(rows[error.index]) from error
        batch = append_tokens(model_inputs(features), [suffixes[row] for row in rows], encoder.tokenizer.pad_token_id)
        output = module.model(**{name: value.to(device) for name, value in batch.items()})
        direct.append(output.embeddings[:, 0].float().cpu())  # (b, K, D) -> (b, D)
        last.append(output.embeddings[:, -1].float().cpu())
        if advance is not None:
            advance(len(rows))
    order = torch.tensor([row for rows in plan for row in rows]).argsort()
    return ForcedEmbeddings(*(normalize(torch.cat(vectors)[order], dim=-1) for vectors in (direct, last)))


INTERVENTIONS = ("drop", "swap", "shuffle")


def shuffled(text: str, seed: int = 0) -> str:
    """
    Put the words of a rationale in random order, which differs from theirs wherever two words do.

    A pure function of its arguments.

    >>> sorted(shuffled("It is the flag of Peru.").split())
    ['It', 'Peru.', 'flag', 'is', 'of', 'the']
    >>> shuffled("Peru Lima"), shuffled("Lima")
    ('Lima Peru', 'Lima')
    """
    words = text.split()
    order = list(words)
    stream = seeded_random(seed, "shuffle", text)
    while order == words and len(set(words)) > 1:
        stream.shuffle(order)
    return " ".join(order)


def swap_donors(
    strata: npt.NDArray[np.int64], anchors: npt.NDArray[np.int64], names: Sequence[object], seed: int = 0
) -> npt.NDArray[np.int64]:
    """
    Draw for each rationale another one that takes its place: of the same stratum, about another input.

    Args:
        strata: `(N,)` numbers, equal for the same task, side and worker; negative: no rationale, which neither gets
            nor is a donor.
        anchors: `(N,)` numbers, equal for equal inputs; or `(N, A)`, in each of which a donor has to differ.
        names: `(N,)`, what tells a rationale from the others. With the seed it determines the draw, which is
            the same if rationales come or leave that it does not meet.
        seed: of the draws.

    Returns:
        `(N,)` the donor's place, -1 where there is none.

    >>> swap_donors(np.array([0, 0, 1, -1]), np.array([5, 6, 7, 8]), "abcd").tolist()
    [1, 0, -1, -1]
    """
    anchors = anchors.reshape(len(strata), -1)  # (N, A)
    order = np.argsort(strata, kind="stable")
    sorted_strata = strata[order]
    donors = np.full(len(strata), -1, dtype=np.int64)
    for stratum in np.unique(sorted_strata[sorted_strata >= 0]).tolist():
        first, last = np.searchsorted(sorted_strata, [stratum, stratum + 1])
        members = order[first:last]
        if (anchors[members] == anchors[members[0]]).all(axis=0).any():  # nobody else's
            continue
        positions = np.array([ring_position(seed, names[row]) for row in members.tolist()], dtype=np.uint64)
        members, ring = members[positions.argsort()], np.sort(positions)
        for row in members.tolist():
            drawn = ring_order(ring, seeded_random(seed, "swap", names[row]))
            others = (members[place] for place in drawn if (anchors[members[place]] != anchors[row]).all())
            donors[row] = next(others, -1)
    return donors
