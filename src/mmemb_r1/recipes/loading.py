"""Load the weights that a recipe is for; adapters are merged into their base model."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from tokenizers.processors import ByteLevel
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from mmemb_r1.recipes.recipe import Recipe
from mmemb_r1.recipes.recognise import ADAPTER_FILE, Checkpoint, check_tokenizer, check_tokens, reading_checkpoint

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Where the parts of a Qwen-VL were before transformers 4.52, and are now; adapters on the Hub have the old names.
MOVED = {r"^model\.layers\.": "model.language_model.layers.", r"^visual\.": "model.visual."}

logger = logging.getLogger(__name__)


def load_backbone(
    recipe: Recipe, checkpoint: Checkpoint, dtype: str = "auto"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Load backbone and processor of a published embedder, without code of its own and from safetensors alone.

    Args:
        recipe: the recipe it is for.
        checkpoint: which one.
        dtype: of the weights, say `"bfloat16"`; `"auto"`: as they are stored.

    Returns:
        The backbone, adapters merged, in eval mode; the processor, its limits of pixels those of the recipe.

    Raises:
        ValueError: if weights or adapters do not fit the architecture, or the tokenizer lacks a token.
        ImportError: if adapters have to be merged and peft is not installed.
    """
    name, revision = checkpoint.backbone
    has_adapters = checkpoint.file(ADAPTER_FILE) is not None
    if has_adapters != (recipe.loading == "lora"):
        there = f"an {ADAPTER_FILE}" if has_adapters else f"no {ADAPTER_FILE}"
        raise ValueError(
            f"{checkpoint.name} has {there}, and the recipe {recipe.name} says loading: {recipe.loading}."
        )
    if checkpoint.base is not None and not has_adapters:
        raise ValueError(f"--base {checkpoint.base} is for adapters; {checkpoint.name} has none. Leave it out.")
    has_processor = any(map(checkpoint.file, PROCESSOR_FILES))  # adapters may come without one
    source = (checkpoint.name, checkpoint.revision) if has_processor else (name, revision)
    check_tokenizer(Checkpoint(*source))
    with reading_checkpoint(source[0]):
        processor = AutoProcessor.from_pretrained(source[0], revision=source[1], trust_remote_code=False)
    check_tokens(recipe, processor.tokenizer.get_vocab().keys())
    options = {"revision": revision, "dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    with reading_checkpoint(name):
        vlm, told = AutoModelForImageTextToText.from_pretrained(name, output_loading_info=True, **options)
    _check_weights(vlm, told, name)
    if has_adapters:
        vlm = _merged(vlm, checkpoint)
    if recipe.pixels is not None:
        processor.image_processor.size = {"shortest_edge": recipe.pixels.least, "longest_edge": recipe.pixels.most}
    if recipe.positions == "sequence":
        vlm.config.sequential_positions = True
    return vlm.eval(), processor


def appended_tokens(tokenizer: Any) -> list[str]:
    """
    List the tokens that a tokenizer puts after every text by itself.

    Raises:
        ValueError: if it puts some before the text.
    """
    text, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    if whole[: len(text)] != text:
        raise ValueError(
            f"The tokenizer puts {tokenizer.convert_ids_to_tokens(whole[: -len(text)])} before every text, which no "
            "recipe knows of; take them out of the post_processor of its tokenizer.json."
        )
    return tokenizer.convert_ids_to_tokens(whole[len(text) :])


def without_appended_tokens(recipe: Recipe, tokenizer: Any) -> Recipe:
    """
    Let a tokenizer append nothing any more, in place: prompts have to end in the marker.

    Returns:
        The recipe; where it reads the last token of a prompt, changed to read what was appended, which its prompts now
        say themselves.
    """
    appended = appended_tokens(tokenizer)
    if not appended:
        return recipe
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    if left := appended_tokens(tokenizer):
        raise ValueError(f"The tokenizer puts {left} after every text, and can't be made to leave that out.")
    logger.warning("The tokenizer puts %s after every text; the prompts of the model say it instead.", appended)
    if recipe.read.position == "marker":  # read before, so that they do not matter
        return recipe
    ending = recipe.prompt.ending + "".join(appended[:-1])
    return replace(
        recipe,
        prompt=replace(recipe.prompt, ending=ending),
        read=replace(recipe.read, marker=appended[-1], position="marker"),
    )


def _check_weights(vlm: PreTrainedModel, told: Any, name: str) -> None:
    """Refuse weights that do not fit. An embedder may lack the language-model head: it gets the input embeddings."""
    missing = {key for key in told["missing_keys"] if not key.startswith("lm_head.")}
    shapes = [entry[0] for entry in told["mismatched_keys"]]
    for what, keys in (
        ("missing", missing),
        ("not of the model", told["unexpected_keys"]),
        ("of another shape", shapes),
    ):
        if keys:
            raise ValueError(
                f"{name} can't be loaded as a {type(vlm).__name__}: {len(keys)} of its weights are {what}, the first "
                f"is {min(keys)}. Is it a checkpoint of this recipe, and downloaded whole?"
            )
    head, embeddings = vlm.get_output_embeddings(), vlm.get_input_embeddings()
    if len(missing) < len(told["missing_keys"]) and head.weight is not embeddings.weight:
        logger.warning("%s has no language-model head; it gets the input embeddings, and has to learn to write.", name)
        head.weight.data.copy_(embeddings.weight.data)


def _merged(vlm: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """Merge a checkpoint's adapters into its base model; every one of their weights has to find its place."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'mmemb-r1[peft]'.") from error

    weights, config = checkpoint.file(ADAPTER_WEIGHTS), checkpoint.file(ADAPTER_FILE)
    if weights is None or config is None:
        raise ValueError(f"{checkpoint.name} has no {ADAPTER_WEIGHTS}; adapters are read from safetensors only.")
    folder = str(config.parent)
    with reading_checkpoint(checkpoint.name):
        model = peft.get_peft_model(vlm, peft.PeftConfig.from_pretrained(folder))
        # left to itself, peft loads nothing of adapters with the old names
        told = model.load_adapter(folder, "default", key_mapping=MOVED, torch_device=str(vlm.device))
    if keys := sorted([*told.missing_keys, *told.unexpected_keys]):
        raise ValueError(
            f"The adapters of {checkpoint.name} do not fit {checkpoint.backbone[0]}: {len(keys)} weights have no "
            f"place or are missing, the first is {keys[0]}. Name another base model: --base ID_OR_PATH."
        )
    return model.merge_and_unload(safe_merge=True)
