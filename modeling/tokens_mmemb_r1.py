"""Control tokens: adding them to a tokenizer, a backbone and a chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

EMBED = "<|embed|>"
THINK = "<think>"
END_THINK = "</think>"

# A thinking backbone's template opens (or opens and closes) `<think>` in its generation prompt. Before `<|embed|>` that
# would be a rationale which nobody decided to write, so it is taken off. What the tokenizer itself would put before a text
# (LLaVA's `<s>`) is written by the template too: it may add nothing of its own, least of all after `<|embed|>`.
_TEMPLATE = (
    "{% set mmemb_r1_prompt %}BACKBONE{%+ endset %}"
    "{% if embed is defined and not embed %}{{ mmemb_r1_prompt }}{% else %}"
    "{% if not mmemb_r1_prompt.startswith(BOS) %}{{ BOS }}{% endif %}"
    "{% set mmemb_r1_end = mmemb_r1_prompt.rstrip() %}"
    "{% if mmemb_r1_end.endswith('<think>') %}{{ mmemb_r1_end[:-7] }}"
    "{% elif mmemb_r1_end.endswith('</think>') and mmemb_r1_end[:-8].rstrip().endswith('<think>') %}"
    "{{ mmemb_r1_end[:-8].rstrip()[:-7] }}"
    "{% else %}{{ mmemb_r1_prompt }}{% endif %}EMBED{% endif %}"
)


@dataclass(frozen=True)
class ControlTokens:
    """Ids of the control tokens; `new_ids` were added, `suppressed` must not occur in a rationale."""

    embed: int
    think: int
    end_think: int
    new_ids: list[int]
    suppressed: list[int]


def embedding_template(template: str, bos: str = "") -> str:
    """
    A chat template that ends every prompt in `<|embed|>`; rendered with `embed=false` it is the backbone's own.

    Args:
        template: the backbone's.
        bos: what every prompt has to begin with.

    Raises:
        ValueError: if the template does so already.
    """
    if "mmemb_r1_prompt" in template:
        raise ValueError("This chat template ends in <|embed|> already: the processor belongs to an mmemb-r1 model.")
    # jinja drops one newline at the end of a template, but not at the end of a block
    wrapper = _TEMPLATE.replace("EMBED", EMBED).replace("BOS", json.dumps(bos))
    return wrapper.replace("BACKBONE", template.removesuffix("\n"))


def add_control_tokens(processor: ProcessorMixin) -> ControlTokens:
    """
    Add `<|embed|>`, `<think>` and `</think>` to the processor's tokenizer and chat template, in place.

    Tokens that are there already are used as they are. None of them is a special token: they must survive decoding, and
    `sanitize_control_tokens` is told to take them for control tokens all the same.

    Raises:
        ValueError: if the processor has no tokenizer or no chat template.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"{type(processor).__name__} has no tokenizer; pass the processor of a vision-language model.")
    template = processor.chat_template or tokenizer.chat_template
    if not isinstance(template, str):
        raise ValueError(
            f"{type(processor).__name__} has no single chat template (it has {type(template).__name__}); set "
            "`processor.chat_template` to the one to embed with."
        )
    known = tokenizer.get_vocab()
    missing = [token for token in (EMBED, THINK, END_THINK) if token not in known]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in missing])
    processor.chat_template = embedding_template(template, _leading_token(tokenizer))
    added = tokenizer.added_tokens_encoder
    # whitespace that some tokenizers keep as added tokens (Gemma's newlines) is ordinary text
    tokenizer.chat_control_tokens = sorted(token for token in added if not token.isspace())
    embed, think, end_think = tokenizer.convert_tokens_to_ids([EMBED, THINK, END_THINK])
    return ControlTokens(
        embed=embed,
        think=think,
        end_think=end_think,
        new_ids=tokenizer.convert_tokens_to_ids(missing),
        suppressed=sorted(id_ for token, id_ in added.items() if id_ != end_think and not token.isspace()),
    )


def _leading_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning-of-sequence token if the tokenizer puts it before every text, else nothing."""
    added = tokenizer("")["input_ids"]
    return tokenizer.bos_token if added and added[0] == tokenizer.bos_token_id else ""


@torch.no_grad()
def initialise_new_rows(vlm: PreTrainedModel, vocab_size: int, new_ids: list[int]) -> None:
    """
    Give the backbone an embedding row for every id below `vocab_size`, and sensible values to those of `new_ids`.

    A new row is the mean of the old ones plus a tenth of their deviation in noise (seeded): in place for the model, yet
    different from one another. Rows that a padded vocabulary has to spare are used.
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
