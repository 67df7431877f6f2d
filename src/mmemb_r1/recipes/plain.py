"""
Embed by a recipe written out in plain transformers calls: what a converted model is compared with.

Nothing here is shared with the model: prompts are made by Python's own string formatting, one input is read at a time,
and states are taken from the backbone itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmemb_r1.recipes.recipe import Recipe
from mmemb_r1.recipes.template import is_punctuation


def plain_prompt(recipe: Recipe, value: Mapping[str, Any]) -> str:
    """
    Write the prompt of one input, up to and including the token whose state is the direct vector.

    Args:
        recipe: the recipe.
        value: with any of `text`, `image` (a list) and `instruction`.
    """
    form, text, instruction = recipe.prompt, value.get("text", ""), value.get("instruction")
    if instruction is None and form.instruction == "system":
        instruction = form.system
    if instruction and form.instruction_ends is not None:
        instruction = instruction.strip()
        instruction += "" if is_punctuation(instruction[-1]) else form.instruction_ends
    if instruction and form.instruction == "text":
        text = f"{instruction}{form.instruction_separator}{text}" if text else instruction
    pieces = [form.image] * len(value.get("image", ()))
    if text:
        pieces.append(text if pieces else form.first_text + text)
    system = form.system if form.instruction == "text" else instruction
    prompt = form.turn_start.replace("{role}", "system") + form.first_text + system + form.turn_end if system else ""
    prompt += form.turn_start.replace("{role}", "user") + (form.separator.join(pieces) or form.empty) + form.ending
    return prompt if recipe.read.position == "before" else prompt + recipe.read.marker


def plain_batch(processor: Any, text: str, value: Mapping[str, Any]) -> dict[str, Tensor]:
    """Make the tensors of one prompt."""
    pictures = [picture.convert("RGB") for picture in value.get("image", ())]
    return dict(processor(text=[text], images=pictures or None, return_tensors="pt"))


@torch.inference_mode()
def plain_vector(recipe: Recipe, vlm: Any, processor: Any, value: Mapping[str, Any]) -> Tensor:
    """Embed one input directly: `(D,)`, float32, of unit norm."""
    return _last_state(recipe, vlm, plain_batch(processor, plain_prompt(recipe, value), value))


@torch.inference_mode()
def plain_reasoned_vector(
    recipe: Recipe, vlm: Any, processor: Any, value: Mapping[str, Any], *, suppressed: Sequence[int], most: int
) -> tuple[Tensor, list[int]]:
    """
    Embed one input after a rationale of greedy tokens, each by a pass over all that is before it.

    Args:
        recipe: one whose checkpoint thinks by itself, see [`Recipe.thinks`].
        vlm, processor: the checkpoint.
        value: the input.
        suppressed: ids that a rationale does not hold.
        most: tokens of the rationale at most; then the token that ends it is fed.

    Returns:
        The vector `(D,)`, and the ids of the rationale without the one that ends it.
    """
    tokenizer = processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(recipe.thought.end)
    text = plain_prompt(recipe, value) + recipe.thought.opening
    batch, written = plain_batch(processor, text, value), list[int]()
    while len(written) < most:
        logits = vlm(**batch, **_positions(recipe, batch)).logits[0, -1].float()  # (V,)
        logits[list(suppressed)] = -torch.inf
        logits[len(tokenizer) :] = -torch.inf
        if (token := int(logits.argmax())) == end:
            break
        written.append(token)
        batch = _longer(batch, token)
    return _last_state(recipe, vlm, _longer(batch, end)), written


def _last_state(recipe: Recipe, vlm: Any, batch: dict[str, Tensor]) -> Tensor:
    backbone, taken = vlm.base_model, []
    norm = backbone.language_model.norm if recipe.read.state == "unnormed" else None
    hook = norm.register_forward_pre_hook(lambda _, states: taken.append(states[0])) if norm is not None else None
    try:
        output = backbone(**batch, **_positions(recipe, batch), use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    states = taken[0] if taken else output.last_hidden_state  # (1, S, H)
    return normalize(states[0, -1].float(), dim=-1)


def _positions(recipe: Recipe, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    if recipe.positions == "backbone":
        return {}
    return {"position_ids": torch.arange(ids.shape[1]).expand(3, 1, -1)}


def _longer(batch: Mapping[str, Tensor], token: int) -> dict[str, Tensor]:
    """Append a token of text to a batch of one row."""
    ids = batch["input_ids"]
    added = {"input_ids": token, "attention_mask": 1}
    return {
        name: torch.cat([value, value.new_full((1, 1), added.get(name, 0))], dim=1)
        if value.shape == ids.shape
        else value
        for name, value in batch.items()
    }
