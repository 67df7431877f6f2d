"""Fingerprint a checkpoint: all that an embedding depends on besides its input and the options."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

# Of a configuration, what says where it came from; the weights say their dtypes themselves.
# A form for the rationales of others changes no vector by itself: it is told with them.
_TRANSIENT = (
    "_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype", "thinker_form",
)  # fmt: skip
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_ABOUT = ("training.json", "results.json")
_PADDING = ("padding", "truncation")  # of a tokenizer, set anew by each call

_State = list[tuple[weakref.ref[Tensor], int, int]]
_weights: weakref.WeakKeyDictionary[nn.Module, tuple[_State, str]] = weakref.WeakKeyDictionary()
_tokenizers: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


def checkpoint_fingerprint(module: MMEmbR1Module, *others: nn.Module) -> str:
    """
    Digest all that turns an input into a vector: weights, configuration, tokenizer, chat template, processors.

    It is the same after saving and loading, and on any device. All values of all weights count: unlike
    `training.vlm.weights_fingerprint`, which reads a few of each because training moves nearly all of them, it stands
    for vectors that are kept, and one changed value makes them wrong. Weights are read once (about a second per
    gigabyte) and again after they changed; writing to `parameter.data` in place is the one change that torch does not
    tell of.

    Args:
        module: the model and its processor.
        *others: modules that come after it.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: if weights are not in memory.
    """
    processor = module.processor
    modules: list[nn.Module] = [module, *others]
    facts = [
        [weights_digest(part) for part in modules],
        [_settings(part) for part in modules],
        module.model.config.to_dict(),
        *processor_facts(processor),
    ]
    text = json.dumps(_lasting(facts), sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=32).hexdigest()


def processor_facts(processor: Any) -> list[Any]:
    """List all of a processor that what it makes of an input depends on, for a digest."""
    settings = processor.to_dict()  # its own, and those of the processors of pictures and videos
    return [_tokenizer_digest(processor.tokenizer), processor.chat_template, _lasting(settings)]


def folder_digest(folder: Path) -> str:
    """Digest the files of a saved model that make its vectors; what was written beside it about it does not count."""
    digest = blake2b(digest_size=32)
    for path in sorted(folder.rglob("*")):
        if path.suffix in _MODEL_FILES and path.name not in _ABOUT and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            with path.open("rb") as file:
                digest.update(file_digest(file, lambda: blake2b(digest_size=32)).digest())
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """
    Digest the names, dtypes, shapes and values of all parameters and saved buffers; of tied ones once.

    Remembered for as long as the same tensors are there and none was written to. A module whose weights an engine
    holds says itself what their digest is.
    """
    if (stored := getattr(module, "stored_weights_digest", None)) is not None:
        return stored
    tensors = list(_tensors(module))
    remembered = _weights.get(module)
    if remembered is not None and _is_unchanged(remembered[0], tensors):
        return remembered[1]
    digest = blake2b(digest_size=32)
    for name, tensor in tensors:
        if tensor.device.type == "meta":
            raise ValueError(
                f"the weight {name!r} is not in memory (it is offloaded), so that its values can't be compared; load "
                "the model without offloading."
            )
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # any dtype as bytes: numpy knows no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    result = digest.hexdigest()
    if not any(tensor.is_inference() for _, tensor in tensors):  # these count no changes
        _weights[module] = ([(weakref.ref(t), t.data_ptr(), t._version) for _, t in tensors], result)
    return result


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def _is_unchanged(state: _State, tensors: list[tuple[str, Tensor]]) -> bool:
    return len(state) == len(tensors) and all(
        kept() is tensor and not tensor.is_inference() and (pointer, version) == (tensor.data_ptr(), tensor._version)
        for (kept, pointer, version), (_, tensor) in zip(state, tensors, strict=True)
    )


def _settings(module: nn.Module) -> list[Any]:
    """List what a module's weights don't say: its class and settings, and which adapters are switched on."""
    adapters = [
        [name, part.active_adapters, part.scaling, part.disable_adapters, part.merged_adapters]
        for name, part in module.named_modules()
        if hasattr(part, "merged_adapters") and hasattr(part, "scaling")
    ]
    settings = getattr(module, "get_config_dict", dict)  # sentence-transformers' modules have it
    return [getattr(module, "stands_for", type(module)).__name__, settings(), adapters]


def _tokenizer_digest(tokenizer: Any) -> str:
    remembered = _tokenizers.get(tokenizer)
    if remembered is not None and remembered[0] == len(tokenizer):
        return remembered[1]
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    text = json.dumps({name: value for name, value in definition.items() if name not in _PADDING}, sort_keys=True)
    result = blake2b(text.encode(), digest_size=32).hexdigest()
    _tokenizers[tokenizer] = (len(tokenizer), result)
    return result


def _lasting(value: Any) -> Any:
    """Drop from settings what saving and loading change."""
    if isinstance(value, dict):
        return {str(name): _lasting(part) for name, part in value.items() if name not in _TRANSIENT}
    return [_lasting(part) for part in value] if isinstance(value, list | tuple) else value
