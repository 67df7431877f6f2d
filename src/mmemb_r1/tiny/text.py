"""Make the chat templates and tokenizers of the tiny VLMs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_BODY = """
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- ' ' ~ content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- ' ' ~ part.text -}}
            {%- elif part.type in media -%}
                {{- media[part.type] -}}
            {%- else -%}
                {{- raise_exception('Got a part of type ' ~ part.type ~ '. Allowed: text, ' ~ media | join(', ')) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- start ~ message.role ~ render(message.content) ~ end -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- start ~ 'assistant' -}}
{%- endif -%}
"""


def tiny_chat_template(tokenizer: PreTrainedTokenizerFast, image: str, video: str | None = None) -> str:
    """Write the Jinja chat template of a family, of `messages` and `add_generation_prompt`.

    A space goes before each text, so that a word has the same token at the start of a text as inside it. A part that
    the family does not have raises an error.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Its `turn_start_token` opens a turn, and its `eos_token` closes it.
        image (`str`): What stands for a picture, control tokens around it included.
        video (`str`, *optional*): What stands for a video; a family without videos has none.
    """
    media = {"image": image} if video is None else {"image": image, "video": video}
    names = {"media": media, "start": tokenizer.turn_start_token, "end": tokenizer.eos_token}
    header = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in names.items())
    return header + _BODY.strip()


DEFAULT_TEXTS = (
    "What is the capital of Peru? The capital of Peru is Lima.",
    "What is this? This is the flag of Chad. This is a dog face.",
    "The digits are 3, 5, 7. The sum is 15. The largest is 7.",
    "Describe the picture in one word. Which of the two is larger?",
)
MAX_LENGTH = 2048  # tokens of the longest sequence
ROLE_WORDS = ("system", "user", "assistant")
ROLE_WEIGHT = 1000
BYTES = 256
STANDARD_ROLES = ("bos_token", "eos_token", "pad_token")  # those that transformers has attributes for


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Mapping[str, str]
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; every string has an encoding, whatever the texts were.

    Args:
        texts (`Iterable[str]`): Training texts. The chat roles are added to them, so that each role is one token.
        vocab_size (`int`): Upper bound on the vocabulary, control tokens and the 256 bytes included.
        special_tokens (`Mapping[str, str]`): Role -> control token, in the order of their ids, say
            `{"image_token": "<image>"}`. Each becomes two attributes: `tokenizer.image_token` and `.image_token_id`.

    Raises:
        ValueError: If `vocab_size` does not hold the control tokens and the 256 bytes.
    """
    tokens = list(dict.fromkeys(special_tokens.values()))
    if vocab_size < BYTES + len(tokens):
        raise ValueError(
            f"Got vocab_size={vocab_size}, which must be at least {BYTES + len(tokens)}: {BYTES} bytes and "
            f"{len(tokens)} control tokens. Pass a larger vocab_size."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *ROLE_WORDS * ROLE_WEIGHT], trainer)

    standard = {role: special_tokens[role] for role in STANDARD_ROLES if role in special_tokens}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        extra_special_tokens={role: token for role, token in special_tokens.items() if role not in standard},
        **standard,
    )
