"""Add control tokens to a tokenizer, a backbone and a chat template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import AddedToken, PreTrainedModel, ProcessorMixin

from .backbones_mmemb_r1 import embedding_template, media_placeholders

EMBED = "<|embed|>"
THINK = "<think>"
END_THINK = "</think>"
WORD_JOINER = "\u2060"  # invisible, and no normalisation takes it away


@dataclass(frozen=True)
class ControlTokens:
    """Hold the ids of the control tokens; `new_ids` were added, `suppressed` must not occur in a rationale."""

    embed: int
    think: int
    end_think: int
    new_ids: list[int]
    suppressed: list[int]


def add_control_tokens(processor: ProcessorMixin) -> ControlTokens:
    """
    Add `<|embed|>`, `<think>` and `</think>` to the processor's tokenizer and chat template, in place.

    Tokens that are there already are used as they are. None of them is a special token: they must survive decoding.

    Raises:
        ValueError: if the processor has no tokenizer or no chat template.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"{type(processor).__name__} has no tokenizer; pass the processor of a vision-language model."
        )
    template = processor.chat_template or tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError(
            f"{type(processor).__name__} has no single chat template (it has {type(template).__name__}); set "
            "`processor.chat_template` to the one to embed with."
        )
    known = tokenizer.get_vocab()
    missing = [token for token in (EMBED, THINK, END_THINK) if token not in known]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in missing])
    processor.chat_template = embedding_template(template)
    added = tokenizer.added_tokens_encoder
    embed, think, end_think = tokenizer.convert_tokens_to_ids([EMBED, THINK, END_THINK])
    return ControlTokens(
        embed=embed,
        think=think,
        end_think=end_think,
        new_ids=tokenizer.convert_tokens_to_ids(missing),
        # whitespace that some tokenizers keep as added tokens (Gemma's newlines) is ordinary text
        suppressed=sorted(id_ for token, id_ in added.items() if id_ != end_think and not token.isspace()),
    )


def control_strings(processor: ProcessorMixin) -> tuple[str, ...]:
    """List what a user must not write: the special tokens, those of media, and this model's own."""
    special = {token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(special | media_placeholders(processor) | {EMBED, THINK, END_THINK}))


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
