"""Load a vision-language model as a chat model, from its own repository or out of an mmemb-r1 checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from mmemb_r1.encoding import check_device
from mmemb_r1.hub.source import check_model
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.loading_mmemb_r1 import loading
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SAMPLED = 16  # values of each parameter that are read


def checkpoint_config(name: str) -> MMEmbR1Config:
    """
    Read the config of an mmemb-r1 checkpoint, a folder or a Hub id.

    Raises:
        HubError: an `OSError`, if a Hub id is not there or can't be reached.
        ValueError: if there is no such folder, or another model in it: it says how that becomes a checkpoint.
    """
    check_model(name)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: no checkpoint could be loaded from there ({reason})") from error
    if not isinstance(config, MMEmbR1Config):
        raise ValueError(
            f"{name} is a {config.model_type} model, no mmemb-r1 checkpoint; make one of it: mmemb-r1 init --vlm "
            f"{name} --output DIR"
        )
    return config


def load_vlm(
    model: str | os.PathLike[str], device: Any = None, dtype: Any = "auto"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Load a vision-language model, in eval mode, and its processor, padding on the left.

    Args:
        model: a folder, from which alone everything is then read, or an ID on the Hub: an
            `AutoModelForImageTextToText`, or an mmemb-r1 checkpoint, of which the backbone is taken. Prompts are
            rendered with `chat_template(processor)`.
        device: where it goes. Default: a GPU if there is one, else the CPU.
        dtype: a torch dtype or one of `DTYPES`; `"auto"` is the one it was saved in.

    Raises:
        HubError: an `OSError`, if a Hub id is not there or can't be reached.
        ValueError: if there is no such folder, device or dtype, it is no vision-language model, or it has no chat
            template.
    """
    from sentence_transformers.util import get_device_name

    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(map(repr, DTYPES))}.")
    check_device(device)
    source, hub = _source(model)
    with _explained(model, source):
        config = AutoConfig.from_pretrained(source, **hub)
        if isinstance(config, MMEmbR1Config):
            local = hub["local_files_only"]
            vlm = MMEmbR1Model.from_pretrained(source, dtype=dtype, local_files_only=local).vlm
        else:
            vlm = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **hub)
        processor = AutoProcessor.from_pretrained(source, **hub)
    chat_template(processor)
    processor.tokenizer.padding_side = "left"
    return vlm.to(device or get_device_name()).eval(), processor


def load_chat_processor(model: str | os.PathLike[str]) -> tuple[str, PreTrainedConfig, ProcessorMixin]:
    """
    Load all of a vision-language model but its weights, for another program that runs it.

    Args:
        model: as for [`load_vlm`].

    Returns:
        The folder or Hub id, the config, and the processor, padding on the left.

    Raises:
        HubError, ValueError: as [`load_vlm`].
    """
    source, hub = _source(model)
    with _explained(model, source):
        config = AutoConfig.from_pretrained(source, **hub)
        processor = AutoProcessor.from_pretrained(source, **hub)
    chat_template(processor)
    processor.tokenizer.padding_side = "left"
    return source, config, processor


def _source(model: str | os.PathLike[str]) -> tuple[str, dict[str, bool]]:
    """Find where a model is read from, and the options of its parts' loading."""
    folder = Path(model).expanduser()
    local = folder.is_dir()
    source = str(folder if local else model)
    check_model(source)
    return source, {"local_files_only": local, "trust_remote_code": False}


@contextmanager
def _explained(model: str | os.PathLike[str], source: str) -> Iterator[None]:
    """Say of what can't be loaded what has to be passed."""
    try:
        with loading(source):
            yield
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{str(model)!r} can't be loaded as a vision-language model. Pass the folder or the Hub ID of a "
            f"model for image-text-to-text or of an mmemb-r1 checkpoint. ({reason})"
        ) from error


def weights_fingerprint(module: nn.Module) -> str:
    """
    Digest a set of weights, at once even for billions of them.

    Of every parameter the name, shape, dtype and a few values spread over its length count, wherever it lies. Training
    changes nearly all values, and so the digest; a change of a few values that are not read goes unnoticed.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> weights_fingerprint(first) == weights_fingerprint(second)
    False
    >>> _ = second.load_state_dict(first.state_dict())
    >>> weights_fingerprint(first) == weights_fingerprint(second)
    True
    """
    digest = blake2b(digest_size=16)
    for name, parameter in sorted(module.named_parameters()):
        values = parameter.detach().reshape(-1)  # (N,)
        places = torch.tensor(_places(len(values)), dtype=torch.long, device=values.device)
        _add_weight(digest, name, parameter.shape, parameter.dtype, values[places].cpu())
    return digest.hexdigest()


def files_fingerprint(source: str) -> str:
    """
    Digest the weights of a saved model as `weights_fingerprint` does those in memory, without loading them.

    The two differ for the same model: a file names weights otherwise, and holds tied ones once.

    Args:
        source: a folder, or a Hub id, whose files are downloaded where they are missing.

    Raises:
        ValueError: if it has no weights in safetensors.
    """
    folder = Path(source if Path(source).is_dir() else snapshot_download(source, allow_patterns="*.safetensors"))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{source} holds no weights in safetensors, by which they could be told from others; save the model with "
            "save_pretrained of transformers."
        )
    digest = blake2b(digest_size=16)
    for file in files:
        with safe_open(file, "pt") as weights:
            for name in sorted(weights.keys()):
                weight = weights.get_slice(name)
                values = [_value(weight, place) for place in _places(math.prod(weight.get_shape()))]
                read = torch.stack(values) if values else torch.empty(0)
                _add_weight(digest, name, weight.get_shape(), weight.get_dtype(), read)
    return digest.hexdigest()


def _places(size: int) -> list[int]:
    """Spread the few places that are read over so many values."""
    count = min(size, _SAMPLED)
    return [number * (size - 1) // max(count - 1, 1) for number in range(count)]


def _value(weight: Any, place: int) -> Tensor:
    """Read one value of a weight in a file, by its place in the flat order."""
    shape = weight.get_shape()
    if not shape:  # of a number alone there are no slices
        return weight[...].reshape(())
    index = np.unravel_index(place, shape)
    return weight[tuple(slice(int(at), int(at) + 1) for at in index)].reshape(())


def _add_weight(digest: Any, name: str, shape: Sequence[int], dtype: Any, values: Tensor) -> None:
    digest.update(repr((name, tuple(shape), str(dtype))).encode())
    digest.update(values.view(torch.uint8).numpy().tobytes())


def chat_template(processor: ProcessorMixin) -> str:
    """
    Find the template that prompts a vision-language model as the chat model it is, to be passed to `render`: its own,
    also where the processor is that of an mmemb-r1 checkpoint and would end prompts in `<|embed|>`.

    A processor without a tokenizer or a single template is a `ValueError`.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if tokenizer is None or not isinstance(template, str):
        raise ValueError(
            f"{type(processor).__name__} has no {'tokenizer' if tokenizer is None else 'chat template'}; a "
            "vision-language model that follows instructions is needed."
        )
    return "{% set embed = false %}" + template if "mmemb_r1_prompt" in template else template
