"""
Keep what differs between families of backbones: a backbone that needs something special gets it here.

Everything is recognised by what a model, cache or processor has, and by its class only where nothing else tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache as cached
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .caching_mmemb_r1 import RoomyLayer
from .ragged_mmemb_r1 import ATTENTION, PLAIN

# How many pictures and videos each row has: sentence-transformers' losses split a batch by these counts.
MEDIA_COUNTS = {"image": "num_images_per_sample", "video": "num_videos_per_sample"}
PIXELS_PER_TOKEN = 28 * 28  # of a Qwen-VL; for processors that do not say
EQUAL_FRAMES = ("SmolVLMProcessor", "InternVLProcessor")  # the videos of one batch need equally many frames

# A thinking backbone's template opens (or opens and closes) `<think>` in its generation prompt. Before `<|embed|>`
# that would be a rationale which nobody decided to write, so it is taken off.
_TEMPLATE = (
    "{% set mmemb_r1_prompt %}BACKBONE{%+ endset %}"
    "{% if embed is defined and not embed %}{{ mmemb_r1_prompt }}{% else %}"
    "{% set mmemb_r1_end = mmemb_r1_prompt.rstrip() %}"
    "{% if mmemb_r1_end.endswith('<think>') %}{{ mmemb_r1_end[:-7] }}"
    "{% elif mmemb_r1_end.endswith('</think>') and mmemb_r1_end[:-8].rstrip().endswith('<think>') %}"
    "{{ mmemb_r1_end[:-8].rstrip()[:-7] }}"
    "{% else %}{{ mmemb_r1_prompt }}{% endif %}<|embed|>{% endif %}"
)


def embedding_template(template: str) -> str:
    """
    Make a chat template end every prompt in `<|embed|>`; rendered with `embed=false` it is the backbone's own.

    Raises:
        ValueError: if the template does so already.
    """
    if "mmemb_r1_prompt" in template:
        raise ValueError("This chat template ends in <|embed|> already: the processor belongs to an mmemb-r1 model.")
    # jinja drops one newline at the end of a template, but not at the end of a block
    return _TEMPLATE.replace("BACKBONE", template.removesuffix("\n"))


def media_placeholders(processor: Any) -> set[str]:
    """Get the texts that stand for pictures and videos in a rendered prompt."""
    names = ("image_token", "video_token")
    return {token for name in names if (token := getattr(processor, name, None))}


# Rotary positions


def uses_multimodal_rope(vlm: Any) -> bool:
    """Tell whether a backbone takes three rotary positions per token (Qwen-VL) instead of one."""
    return hasattr(vlm.base_model, "get_rope_index")


def token_positions(mask: Tensor) -> Tensor:
    """Number the tokens of each row, `(B, S)`; padding counts as 0."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def rotary_positions(
    vlm: Any, input_ids: Tensor, attention_mask: Tensor, media: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """
    Compute the rotary positions of complete sequences.

    They are always passed to the backbone: left to itself, a Qwen-VL counts padding as positions when there are no
    media, and keeps the offsets as its own state, which two threads would share.

    Returns:
        The positions, `(B, S)` or, for multimodal RoPE, `(3, B, S)`; and the offset of each row, `(B, 1)`: the
        difference of a later token's position and its number in the row, for `next_positions`.
    """
    positions = token_positions(attention_mask)
    if not uses_multimodal_rope(vlm):
        return positions, positions.new_zeros(len(positions), 1)
    if not any(key.endswith("grid_thw") for key in media):
        return positions.expand(3, -1, -1), positions.new_zeros(len(positions), 1)
    return vlm.base_model.get_rope_index(input_ids=input_ids, attention_mask=attention_mask, **media)


def next_positions(vlm: Any, numbers: Tensor, offset: Tensor) -> Tensor:
    """
    Compute the rotary positions of tokens that follow a sequence which the backbone has read.

    Args:
        vlm: the backbone.
        numbers: `(B, T)` the tokens' numbers in their rows, see `token_positions`.
        offset: `(B, 1)` from `rotary_positions` of what was read.

    Returns:
        `(B, T)` or, for multimodal RoPE, `(3, B, T)`.
    """
    positions = numbers + offset
    return positions.expand(3, -1, -1) if uses_multimodal_rope(vlm) else positions


def rotary_frequencies(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    """List the frequencies from which angles are computed: the module, the name of its buffer, and the buffer."""
    return [
        (part, name, buffer)
        for part in model.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]


# Key-value caches


def can_join(cache: Any) -> bool:
    """Tell whether rows of this cache can stand beside those of another one: they can't with recurrent states."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, RoomyLayer) for layer in cache.layers)


def can_be_ragged(decoder: Any, cache: Any) -> bool:
    """
    Tell whether rows of this cache can stand in a `RaggedCache`: with full attention in all layers, by `sdpa`, and
    with keys and values of one shape.
    """
    if decoder.config._attn_implementation not in (PLAIN, ATTENTION):
        return False
    return all(type(layer) is DynamicLayer and layer.keys.shape == layer.values.shape for layer in cache.layers)


# Tensors of a batch


def is_per_token(value: Any, input_ids: Tensor) -> bool:
    """Tell whether a value of a batch belongs to its tokens (ids, mask, token types): it moves with them."""
    return isinstance(value, Tensor) and value.shape == input_ids.shape and not value.is_floating_point()


def model_inputs(features: Mapping[str, Any]) -> dict[str, Any]:
    """
    Take from what `preprocess` returned the part that the model takes.

    Some processors fill up rows that have no picture with blank ones. In a part of a batch that has neither pictures
    nor videos these are left out.
    """
    counts = [features[name] for name in MEDIA_COUNTS.values() if name in features]
    blank = bool(counts) and not any(bool(count.any()) for count in counts)
    return {
        name: value
        for name, value in features.items()
        if name not in MEDIA_COUNTS.values() and not (blank and name.startswith("pixel_"))
    }


# Processors


def image_token_counter(processor: Any) -> Callable[[int, int], int]:
    """Make a function from a picture's width and height to the number of its tokens, as far as the processor tells."""

    @cached
    def count(width: int, height: int) -> int:
        try:
            if hasattr(processor, "_get_num_multimodal_tokens"):
                return int(processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"][0])
        except ValueError:  # a shape that the processor refuses, which it says when it is given the picture
            pass
        return 1 + width * height // PIXELS_PER_TOKEN

    return count


def takes_videos(processor: Any) -> bool:
    """Tell whether a backbone's processor takes videos, and not pictures only."""
    return getattr(processor, "video_processor", None) is not None


def compatible_runs(
    processor: Any, conversations: Sequence[list[dict[str, Any]]]
) -> list[Sequence[list[dict[str, Any]]]]:
    """
    Cut a batch into runs of neighbours whose pictures and videos the processor takes in one call.

    SmolVLM's would write the longest video's number of frames into every prompt, InternVL's fails; and beside videos
    SmolVLM's loses pictures.
    """
    name = type(processor).__name__
    if name not in EQUAL_FRAMES:
        return [conversations]
    starts, media = [0], set[int]()
    for row, chat in enumerate(conversations):
        parts = [part for message in chat for part in message["content"]]
        own = {len(part["video"]) for part in parts if part["type"] == "video"}
        if name == "SmolVLMProcessor" and any(part["type"] == "image" for part in parts):
            own.add(0)
        if own and media and own != media:
            starts.append(row)
            media = set()
        media |= own
    return [conversations[start:end] for start, end in pairwise([*starts, len(conversations)])]


def join_batches(batches: Sequence[Mapping[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """
    Join batches to one, padded on the left: what the processor would have made of all rows.

    Raises:
        ValueError: if their pictures and frames differ in size.
    """
    width = max(batch["input_ids"].shape[1] for batch in batches)
    joined = {}
    for name in dict.fromkeys(name for batch in batches for name in batch):
        values = [batch[name] for batch in batches if name in batch]
        if all(is_per_token(batch[name], batch["input_ids"]) for batch in batches if name in batch):
            filler = pad_token_id if name == "input_ids" else 0
            values = [pad(value, (width - value.shape[1], 0), value=filler) for value in values]  # (B, S)
        elif name.startswith("pixel_") and values[0].ndim > 3 and len({value.shape[2:] for value in values}) == 1:
            most = max(value.shape[1] for value in values)  # pictures of a row
            values = [pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1])) for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            raise ValueError("their pictures and frames differ in size; encode them in separate calls.")
        joined[name] = torch.cat(values)
    return joined


def fitted_video(processor: Any, part: dict[str, Any]) -> dict[str, Any]:
    """Repeat the last frame of a video that is shorter than what one step of a Qwen-VL takes in, two frames."""
    least = getattr(getattr(processor, "video_processor", None), "temporal_patch_size", None) or 1
    if part["type"] != "video" or len(part["video"]) >= least:
        return part
    frames = part["video"]
    return {**part, "video": np.concatenate([frames, frames[-1:].repeat(least - len(frames), axis=0)])}


def video_options(processor: Any, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Get the processor's options for the videos of a batch.

    Args:
        processor: the backbone's.
        parts: all parts of all messages of the batch.

    Raises:
        ValueError: if the processor takes no videos, or would make nonsense of these together.
    """
    videos = [part for part in parts if part["type"] == "video"]
    if not videos:
        return {}
    if not takes_videos(processor):
        raise ValueError("this model's backbone takes no videos; pass frames as images.")
    name = type(processor).__name__
    if name == "SmolVLMProcessor" and any(part["type"] == "image" for part in parts):
        raise ValueError("SmolVLM takes either images or videos in one input; pass frames as images, too.")
    lengths = {len(part["video"]) for part in videos}
    if name in EQUAL_FRAMES and len(lengths) > 1:
        raise ValueError(
            f"this model's backbone takes videos of equally many frames in one input, these have {sorted(lengths)}; "
            "sample as many of each."
        )
    # some processors write into the list of numbers
    metadata = [{**part["metadata"], "frames_indices": list(part["metadata"]["frames_indices"])} for part in videos]
    # frames of few pixels would have their channels looked for in another axis, and with them all videos of the batch
    options = {"do_sample_frames": False, "video_metadata": metadata, "input_data_format": "channels_last"}
    return {"videos_kwargs": options}
