"""
Keep what differs between families of backbones: a backbone that needs something special gets it here.

Everything is recognised by what a model, cache or processor has, and by its class only where nothing else tells.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache as cached
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .caching_mmemb_r1 import RoomyLayer
from .locking_mmemb_r1 import tokenizing
from .options_mmemb_r1 import FIELDS, LARGEST, check_option
from .ragged_mmemb_r1 import ATTENTION, PLAIN

# How many pictures and videos each row has: sentence-transformers' losses split a batch by these counts.
MEDIA_COUNTS = {"image": "num_images_per_sample", "video": "num_videos_per_sample"}
PIXELS_PER_TOKEN = 28 * 28  # of a Qwen-VL; for processors that do not say
MAX_ASPECT = 200  # a Qwen-VL refuses pictures that are longer
EQUAL_FRAMES = ("SmolVLMProcessor", "InternVLProcessor")  # the videos of one batch need equally many frames

# A thinking backbone's template opens (or opens and closes) `<think>` in its generation prompt. Before the marker
# that would be a rationale which nobody decided to write, so it is taken off.
_TEMPLATE = (
    "{% set mmemb_r1_prompt %}BACKBONE{%+ endset %}"
    "{% if embed is defined and not embed %}{{ mmemb_r1_prompt }}{% else %}"
    "{% set mmemb_r1_end = mmemb_r1_prompt.rstrip() %}"
    "{% if mmemb_r1_end.endswith('<think>') %}{{ mmemb_r1_end[:-7] }}"
    "{% elif mmemb_r1_end.endswith('</think>') and mmemb_r1_end[:-8].rstrip().endswith('<think>') %}"
    "{{ mmemb_r1_end[:-8].rstrip()[:-7] }}"
    "{% else %}{{ mmemb_r1_prompt }}{% endif %}MARKER{% endif %}"
)
_OWN_TEMPLATE = "{# mmemb_r1_prompt #}{% if embed is defined and not embed %}BACKBONE{% else %}PROMPT{% endif %}"


def embedding_template(template: str | None, marker: str = "<|embed|>", prompt: str | None = None) -> str:
    """
    Make a chat template end every prompt in the marker; rendered with `embed=false` it is the backbone's own.

    Args:
        template: the backbone's.
        marker: the text of the token that ends prompts.
        prompt: the template of prompts to embed, which ends in the marker. Default: the backbone's, and the marker.

    Raises:
        ValueError: if the template does so already.
    """
    if "mmemb_r1_prompt" in (template or ""):
        raise ValueError("This chat template ends in <|embed|> already: the processor belongs to an mmemb-r1 model.")
    # jinja drops one newline at the end of a template, but not at the end of a block
    template = (template or "").removesuffix("\n")
    if prompt is None:
        return _TEMPLATE.replace("MARKER", marker).replace("BACKBONE", template)
    return _OWN_TEMPLATE.replace("PROMPT", prompt.removesuffix("\n")).replace("BACKBONE", template)


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
    media, and keeps the offsets as its own state, which two threads would share. With `sequential_positions` in the
    backbone's config, tokens of pictures are numbered like those of text: some embedders were trained so.

    Returns:
        The positions, `(B, S)` or, for multimodal RoPE, `(3, B, S)`; and the offset of each row, `(B, 1)`: the
        difference of a later token's position and its number in the row, for `next_positions`.
    """
    positions = token_positions(attention_mask)
    if not uses_multimodal_rope(vlm):
        return positions, positions.new_zeros(len(positions), 1)
    if getattr(vlm.config, "sequential_positions", False) or not any(key.endswith("grid_thw") for key in media):
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


# The norm after the last layer

NORMS = ("norm", "final_layernorm", "ln_f")  # its names


def last_norm(vlm: Any) -> nn.Module:
    """
    Find the backbone's last norm.

    Raises:
        ValueError: if that norm is no RMS norm, which shifts nothing.
    """
    decoder = vlm.get_decoder()
    norm = next((part for name in NORMS if (part := getattr(decoder, name, None)) is not None), None)
    if norm is None or "RMSNorm" not in type(norm).__name__:
        raise ValueError(
            f'embed_state="unnormed": {type(decoder).__name__} ends in {type(norm).__name__}, and only what an '
            'RMSNorm does can be undone; use "normed".'
        )
    return norm


def norm_scale(vlm: Any) -> Tensor:
    """
    Get by how much the backbone's last norm scales each dimension, `(H,)`: a state divided by it has the direction
    that it had before the norm. Errors are those of [`last_norm`].
    """
    norm = last_norm(vlm)
    weight = next(norm.parameters())
    return norm(torch.ones_like(weight, dtype=torch.float32))  # whatever it adds to its weight


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


def image_token_counter(processor: Any, max_image_tokens: int | None = None) -> Callable[[int, int], int]:
    """
    Make a function from a picture's width and height to the number of its tokens, as far as the processor tells.

    Args:
        processor: the backbone's.
        max_image_tokens: as in the config; more are not counted.
    """
    most = LARGEST if max_image_tokens is None else max_image_tokens
    count = _token_counter(processor, picture_options(processor, max_image_tokens))
    return cached(lambda width, height: min(count(width, height), most))


def _token_counter(processor: Any, options: Mapping[str, Any]) -> Callable[[int, int], int]:
    if options and _is_qwen(processor.image_processor):  # counts by the former names of these options
        size = options["size"]
        options = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

    def count(width: int, height: int) -> int:
        try:
            if hasattr(processor, "_get_num_multimodal_tokens") and min(width, height) > 0:
                with tokenizing():  # Idefics3's asks its tokenizer
                    told = processor._get_num_multimodal_tokens(image_sizes=[(height, width)], **options)
                return int(told["num_image_tokens"][0])
        except ValueError:  # a shape that the processor refuses, which it says when it is given the picture
            pass
        return 1 + width * height // PIXELS_PER_TOKEN

    return count


def picture_options(processor: Any, max_image_tokens: int | None) -> dict[str, Any]:
    """
    Find the processor's own options that keep every picture within so many tokens, its aspect kept.

    A Qwen-VL gets a limit of pixels, Idefics and SmolVLM a shorter edge (of fewer tiles), InternVL fewer tiles.

    Args:
        processor: the backbone's.
        max_image_tokens: as in the config; `None` is no limit.

    Returns:
        The `images_kwargs` of a call; nothing where the processor's settings need no change.

    Raises:
        ValueError: if the backbone gives every picture more tokens, or is of a family without such options.
    """
    if max_image_tokens is None:
        return {}
    images, limit = processor.image_processor, max_image_tokens
    if _is_qwen(images):
        token = (images.patch_size * images.merge_size) ** 2  # pixels
        least, most = images.size["shortest_edge"], images.size["longest_edge"]
        if limit * token >= most:
            return {}
        # enlarged to the least size, a picture may become larger than that: it is rounded up
        least = least if limit * token >= 4 * least else token
        return {"size": {"shortest_edge": least, "longest_edge": limit * token}}
    if hasattr(images, "max_image_size"):
        edge, length = images.max_image_size["longest_edge"], processor.image_seq_len
        most = images.size["longest_edge"] // edge if images.do_image_splitting else 1
        tiles = _most_tiles(most, limit, lambda tiles: _tiled_tokens(tiles, length))
        return {} if tiles == most else {"size": {"longest_edge": tiles * edge}, "do_image_splitting": tiles > 1}
    if hasattr(images, "max_patches"):
        length = processor.image_seq_length
        # beside several tiles stands the whole picture; two tokens are around it
        tiles = _most_tiles(images.max_patches, limit, lambda tiles: 2 + length * (tiles + (tiles > 1)))
        few = {"min_patches": min(images.min_patches, tiles), "max_patches": tiles}
        return {} if tiles == images.max_patches else few
    count = _token_counter(processor, {})
    counts = {count(*size) for size in ((64, 64), (4000, 3000), (300, 1500))}
    crops = getattr(images, "do_pan_and_scan", False)  # into parts, whose number a processor of Gemma does not tell
    if len(counts) > 1 or crops or not hasattr(processor, "_get_num_multimodal_tokens"):
        raise ValueError(
            f"max_image_tokens={limit}: a {type(processor).__name__} has no option that mmemb-r1 knows for it; leave "
            "it None, or pass smaller pictures."
        )
    _most_tiles(1, limit, lambda _: min(counts))  # the same for every picture
    return {}


def checked_limit(processor: Any, max_image_tokens: Any) -> int | None:
    """
    Check `max_image_tokens`, and return it.

    Raises:
        ValueError: if it is no number of at least 1, or the backbone can't keep it, see `picture_options`.
    """
    if max_image_tokens is not None:
        max_image_tokens = check_option("max_image_tokens", max_image_tokens, FIELDS)
    picture_options(processor, max_image_tokens)
    return max_image_tokens


def limited_processor(processor: Any, max_image_tokens: int | None) -> Any:
    """Make a copy of a processor that keeps the limit by its own settings, for programs that call it themselves."""
    options = picture_options(processor, max_image_tokens)
    if not options:
        return processor
    limited = copy.deepcopy(processor)
    for name, value in options.items():
        setattr(limited.image_processor, name, value)
    return limited


def narrow_pixels(features: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """
    Convert the pixels of a batch to the model's dtype where that is narrower: half the bytes to move. A vision tower
    does so first of all, so that vectors stay the same.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return features
    return {
        name: value.to(dtype) if name.startswith("pixel_values") and value.is_floating_point() else value
        for name, value in features.items()
    }


def _is_qwen(images: Any) -> bool:
    return hasattr(images, "merge_size") and hasattr(images, "patch_size") and "longest_edge" in dict(images.size)


def _tiled_tokens(tiles: int, length: int) -> int:
    """Count the tokens of a picture of Idefics in `tiles` x `tiles` parts, the whole one and the marks of each."""
    whole = length + 3
    return whole if tiles == 1 else tiles * (tiles * (length + 2) + 1) + whole + 1


def _most_tiles(most: int, limit: int, count: Callable[[int], int]) -> int:
    """Find the largest number of tiles up to `most` whose tokens are within a limit."""
    counts = {tiles: count(tiles) for tiles in range(most, 0, -1)}
    for tiles, tokens in counts.items():
        if tokens <= limit:
            return tiles
    raise ValueError(
        f"max_image_tokens={limit}: this model's backbone gives each picture {counts[1]} tokens at least; allowed: "
        f"{counts[1]} or more, or None."
    )


def fitted_picture(processor: Any, part: dict[str, Any], max_image_tokens: int | None) -> dict[str, Any]:
    """
    Make a picture smaller that a Qwen-VL would still give more tokens than the limit, because one side of it would be
    less than a token wide, and is rounded up.
    """
    images = processor.image_processor
    if max_image_tokens is None or part["type"] != "image" or not _is_qwen(images):
        return part
    picture, limit = part["image"], max_image_tokens
    width, height = picture.size
    count = _token_counter(processor, picture_options(processor, limit))
    if max(width, height) > MAX_ASPECT * min(width, height) or count(width, height) <= limit:
        return part
    rows = max(1, math.floor(math.sqrt(limit * height / width)))
    columns = min(limit // min(rows, limit), max(1, round(rows * width / height)))
    rows = min(rows, limit // columns)
    edge = images.patch_size * images.merge_size
    return {**part, "image": picture.resize((columns * edge, rows * edge), Image.Resampling.BICUBIC)}


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


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Name the cache as a model's `forward` takes it: transformers 5.24 calls it `cache`, before `past_key_values`."""
    return {_cache_argument(type(model).forward): cache}


@cached
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_of(output: Any) -> Any:
    """Get the cache out of a model's output, whatever transformers calls it."""
    return output["cache"] if "cache" in output else output["past_key_values"]


def fitted_video(processor: Any, part: dict[str, Any]) -> dict[str, Any]:
    """
    Repeat the last frame of a video that is shorter than what one step of a Qwen-VL takes in, two frames, and its
    number, for processors that read times of frames from the numbers.
    """
    least = getattr(getattr(processor, "video_processor", None), "temporal_patch_size", None) or 1
    if part["type"] != "video" or len(part["video"]) >= least:
        return part
    frames, metadata = part["video"], part["metadata"]
    missing = least - len(frames)
    indices = list(metadata["frames_indices"])
    return {
        **part,
        "video": np.concatenate([frames, frames[-1:].repeat(missing, axis=0)]),
        "metadata": {**metadata, "frames_indices": indices + indices[-1:] * missing},
    }


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
