"""Measure one input or rationale as a model reads it: its length in tokens, or why it can't be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import transformers
from transformers import ProcessorMixin

from mmemb_r1.content import given_parts, stored_digest
from mmemb_r1.fingerprint import processor_facts
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS, MediaOptions, find_file, stored_source
from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import rationale_ids, split_rounds
from mmemb_r1.training.tables import stored_input

KEY_SIZE = 16  # bytes
_VERSION = 1  # goes up when the same input gets another length


class MeasuredInput(NamedTuple):
    """
    Hold what is known of an input or a rationale.

    Attributes:
        tokens: of an input's whole prompt (template, text and media), or of a rationale's rounds with the control
            tokens around each.
        longest: tokens of a rationale's longest round without control tokens; 0 for an input.
        reason: why it can't be read, or `None`.
    """

    tokens: int
    longest: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Reading:
    """
    Say how a model reads inputs and rationales.

    Args:
        processor: of the model; `None` opens what is to be read, and counts no tokens.
        media: how pictures and videos are opened.
        max_text_tokens: an input's text is cut to so many tokens. Default: never.
        max_rounds: a rationale's segments are read in so many rounds at most; the rest joins the last.
        chat_template: takes the place of the processor's.
        max_image_tokens: pictures are made smaller, to so many tokens each. Default: never.
        control_tokens: how many stand around the ids of one rationale.
    """

    processor: ProcessorMixin | None
    media: MediaOptions = DEFAULTS
    max_text_tokens: int | None = None
    max_rounds: int = 1
    chat_template: str | None = None
    max_image_tokens: int | None = None
    control_tokens: int = 3

    @classmethod
    def of(cls, processor: ProcessorMixin, config: Any, max_rounds: int = 1) -> Reading:
        """Read as an mmemb-r1 model with this `MMEmbR1Config` does."""
        media = MediaOptions.of(config)
        return cls(
            processor,
            media,
            config.max_text_tokens,
            max_rounds,
            max_image_tokens=config.max_image_tokens,
            control_tokens=num_control_tokens(config),
        )

    def fingerprint(self) -> str:
        """Digest all that a length depends on besides the input: 32 hexadecimal digits."""
        facts = [
            _VERSION,
            transformers.__version__,
            None if self.processor is None else processor_facts(self.processor),
            asdict(self.media),
            self.max_text_tokens,
            self.max_rounds,
            self.chat_template,
            self.max_image_tokens,
            self.control_tokens,
        ]
        return blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    def measure_input(self, value: Mapping[str, Any]) -> MeasuredInput:
        """Open and decode every picture and video of an input as a table stores it, and count its prompt's tokens."""
        try:
            conversations = to_conversations([stored_input(value)], media=self.media)
            if self.processor is None:
                return MeasuredInput(0)
            batch = render(
                self.processor,
                conversations,
                self.max_text_tokens,
                self.chat_template,
                self.max_image_tokens,
            )
        except InputError as error:
            return MeasuredInput(0, reason=error.fault)
        return MeasuredInput(int(batch["input_ids"].shape[1]))

    def measure_rationale(self, segments: Sequence[str]) -> MeasuredInput:
        """Count the tokens of a rationale."""
        if self.processor is None:
            return MeasuredInput(0)
        lengths = [len(rationale_ids(self.processor, text)) for text in split_rounds(segments, self.max_rounds)]
        return MeasuredInput(sum(lengths) + self.control_tokens * len(lengths), max(lengths))


def input_key(value: Mapping[str, Any]) -> bytes:
    """
    Digest an input as a table stores it, with the size and time of change of the files that it names: 16 bytes.

    No file is read. A file that is changed, put back or taken away gives another key.
    """
    digest = blake2b(b"input", digest_size=KEY_SIZE)
    digest.update(stored_digest(given_parts(value)))
    for path in _paths(value):
        digest.update(repr((path, _state(path))).encode())
    return digest.digest()


def _state(path: str) -> tuple[int, int] | None:
    """Tell the size of a file and when it was changed; `None` where there is none."""
    found = find_file(path)
    if found is None:
        return None
    try:
        status = os.stat(found)
    except FileNotFoundError:  # it went away just now
        return None
    return status.st_size, status.st_mtime_ns


def rationale_key(segments: Sequence[str]) -> bytes:
    """Digest the segments of a rationale: 16 bytes."""
    return blake2b(json.dumps(["rationale", *segments]).encode(), digest_size=KEY_SIZE).digest()


def _paths(value: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of an input's pictures and videos; bytes count by themselves."""
    for kind in ("image", "video"):
        given = value.get(kind)
        for one in given if isinstance(given, list) else [given]:
            source = stored_source(one)
            if isinstance(source, str):
                yield source
