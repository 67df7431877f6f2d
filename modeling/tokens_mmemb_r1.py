"""Add control tokens to a tokenizer, a backbone and a chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel, ProcessorMixin

from .backbones_mmemb_r1 import embedding_template, media_placeholders

EMBED = "<|embed|>"
THINK = "<think>"
END_THINK = "</think>"
OWN = (EMBED, THINK, END_THINK)
WORD_JOINER = "\u2060"  # invisible, and no normalisation takes it away


@dataclass(frozen=True)
class Controls:
    """
    Say in texts how prompts end and rationales are written, see `paths_mmemb_r1`.

    Attributes:
        marker: ends every prompt: one token, new or one that the tokenizer has.
        opening: what an input that thinks is fed first.
        end: with what a rationale ends: one token, new or one that the tokenizer has.
        closing: what stands between the end of a rationale and the token at which its embedding is read.
        reasoned_marker: that token; `None` if the embedding is read at `end` itself.
    """

    marker: str = EMBED
    opening: str = THINK
    end: str = END_THINK
    closing: str = ""
    reasoned_marker: str | None = EMBED

    @classmethod
    def at(cls, marker: str, **others: Any) -> Controls:
        """Make controls with one marker for both, the direct and the reasoned embedding."""
        return cls(marker=marker, reasoned_marker=marker, **others)

    @property
    def tokens(self) -> list[str]:
        """List those that are one token each, in order."""
        own = [THINK] if self.opening.startswith(THINK) else []
        read = [self.reasoned_marker] if self.reasoned_marker else []
        return list(dict.fromkeys([self.marker, *own, self.end, *read]))


@dataclass(frozen=True)
class ControlTokens:
    """
    Hold what was made of [`Controls`].

    Attributes:
        fields: of the config, ids by name.
        new_ids: tokens that were added.
    """

    fields: dict[str, Any]
    new_ids: list[int]


def add_control_tokens(
    processor: ProcessorMixin, controls: Controls | None = None, template: str | None = None
) -> ControlTokens:
    """
    Add control tokens, by default `<|embed|>`, `<think>` and `</think>`, to the processor's tokenizer, and to its chat
    template, in place.

    Tokens that are there already are used as they are. Those three are no special tokens: they must survive decoding.
    Others become special ones, which no text of a user can hold.

    Args:
        processor: of a vision-language model.
        controls: which tokens. Default: those of mmemb-r1.
        template: a chat template that ends in the marker. Default: the processor's own, and the marker.

    Raises:
        ValueError: if the processor has no tokenizer or no chat template, or a marker is more than one token.
    """
    controls = controls or Controls()
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"{type(processor).__name__} has no tokenizer; pass the processor of a vision-language model."
        )
    backbone = processor.chat_template or tokenizer.chat_template
    if not isinstance(backbone, str | None if template else str):
        raise ValueError(
            f"{type(processor).__name__} has no single chat template (it has {type(backbone).__name__}); set "
            "`processor.chat_template` to the one to embed with."
        )
    known = tokenizer.get_vocab()
    missing = [token for token in controls.tokens if token not in known]
    own = [token for token in missing if token in OWN]
    others = [token for token in controls.tokens if token not in OWN]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in others], special_tokens=True)
    processor.chat_template = embedding_template(backbone, controls.marker, template)
    return ControlTokens(_config_fields(tokenizer, controls), tokenizer.convert_tokens_to_ids(missing))


def _config_fields(tokenizer: Any, controls: Controls) -> dict[str, Any]:
    """Look up what the config says of the controls: ids, and lists of ids where they are not the default."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for token in controls.tokens:
        if len(ids(token)) != 1:
            raise ValueError(f"{token!r} is {len(ids(token))} tokens for this tokenizer; a marker has to be one.")
    embed, end = (tokenizer.convert_tokens_to_ids(token) for token in (controls.marker, controls.end))
    fields = {"embed_token_id": embed, "end_think_token_id": end}
    if controls.opening == THINK:
        fields["think_token_id"] = tokenizer.convert_tokens_to_ids(THINK)
    else:
        fields["opening_token_ids"] = ids(controls.opening)
    closing = ids(controls.closing) + ids(controls.reasoned_marker or "")
    if closing != [embed]:
        fields["closing_token_ids"] = closing
    # whitespace that some tokenizers keep as added tokens (Gemma's newlines) is ordinary text
    added = tokenizer.added_tokens_encoder
    suppressed = sorted(id_ for token, id_ in added.items() if id_ != end and not token.isspace())
    return fields | {"suppressed_token_ids": suppressed, "rationale_vocab_size": len(tokenizer)}


def control_strings(processor: ProcessorMixin) -> tuple[str, ...]:
    """List what a user must not write: the special tokens, those of media, and this model's own."""
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(special | media_placeholders(processor) | set(OWN)))


def as_plain_text(text: str, controls: tuple[str, ...]) -> str:
    """
    Break each control string in a text by a word joiner after its first character.

    This works with every processor. `apply_chat_template(sanitize_control_tokens=True)` does not: Idefics3's, Gemma
    3's and InternVL's count what it wrote, and older releases ignore it.

    >>> as_plain_text("What does <think> mean?", ("<think>",))
    'What does <\\u2060think> mean?'
    """
    return _control_pattern(controls).sub(rf"\g<0>{WORD_JOINER}", text)


@lru_cache
def _control_pattern(controls: tuple[str, ...]) -> re.Pattern[str]:
    """Match the first character of every control string, also of those that overlap."""
    return re.compile(f"(?=(?:{'|'.join(map(re.escape, controls))})).", re.DOTALL)


@torch.no_grad()
def initialise_new_rows(vlm: PreTrainedModel, vocab_size: int, new_ids: list[int]) -> None:
    """
    Give the backbone an embedding row for every id below `vocab_size`, and sensible values to those of `new_ids`.

    A new row is the mean of the old ones plus a tenth of their deviation in noise (seeded): in place for the model,
    yet different from one another. Rows that a padded vocabulary has to spare are used.
    """
    if not new_ids:
        return
    old = min(new_ids)
    if vlm.get_input_embeddings().weight.shape[0] < vocab_size:
        vlm.resize_token_embeddings(vocab_size, mean_resizing=False)
    generator = torch.Generator().manual_seed(0)
    weights = {id(layer.weight): layer.weight for layer in (vlm.get_input_embeddings(), vlm.get_output_embeddings())}
    for weight in weights.values():  # one tensor if the two are tied
        rows = weight[:old].float()
        noise = torch.randn(len(new_ids), weight.shape[1], generator=generator).to(weight.device)
        weight[new_ids] = (rows.mean(dim=0) + 0.1 * rows.std(dim=0) * noise).to(weight.dtype)
