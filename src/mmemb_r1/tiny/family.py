"""What defines a family of tiny VLMs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from .sizes import TinySizes


@dataclass(frozen=True)
class Family:
    """A family of VLMs.

    Args:
        special_tokens (`Mapping[str, str]`): Role -> control token, see [`train_tokenizer`].
        make_config (`Callable`): `(sizes, tokenizer) -> config` of the whole model.
        make_processor (`Callable`): `(sizes, tokenizer) -> processor` with its chat template.
    """

    special_tokens: Mapping[str, str]
    make_config: Callable[[TinySizes, PreTrainedTokenizerFast], PreTrainedConfig]
    make_processor: Callable[[TinySizes, PreTrainedTokenizerFast], ProcessorMixin]
