"""Chat templates of the tiny VLMs, with as few tokens as they can: on a CPU each one costs training time."""

from __future__ import annotations

import json

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


def chat_template(
    image: str, video: str | None = None, *, start: str = "<|im_start|>", end: str = "<|im_end|>"
) -> str:
    """The Jinja chat template of a family.

    Text follows a space, so that a word has the same token at the start of a text as inside of one.

    It renders turns of any role; a content is a string or a list of parts `{"type": "text", "text": ...}`,
    `{"type": "image"}`, `{"type": "video"}`. A part that the family does not have raises an error.

    Args:
        image (`str`): What stands for a picture, control tokens around it included.
        video (`str`, *optional*): What stands for a video; a family without videos has none.
        start (`str`, *optional*, defaults to `"<|im_start|>"`): Token that opens a turn.
        end (`str`, *optional*, defaults to `"<|im_end|>"`): Token that closes a turn.

    Returns:
        `str`: A template of `messages` and `add_generation_prompt`.
    """
    media = {"image": image} if video is None else {"image": image, "video": video}
    names = {"media": media, "start": start, "end": end}
    header = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in names.items())
    return header + _BODY.strip()
