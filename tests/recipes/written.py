"""
Embed as the published code does, written from the facts about each embedder: in transformers calls, without anything
of this package.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen3_vl_embedding(text: str, pictures: int, instruction: str | None) -> str:
    said = (instruction or "Represent the user's input.").strip()
    if not unicodedata.category(said[-1]).startswith("P"):
        said += "."
    content = PICTURE * pictures + text or "NULL"
    return f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def gme(text: str, pictures: int, instruction: str | None) -> str:
    said = instruction or "You are a helpful assistant."
    return (
        f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\n{PICTURE * pictures}{text}<|im_end|>\n"
        "<|im_start|>assistant\n<|endoftext|>"
    )


def vlm2vec(text: str, pictures: int, instruction: str | None) -> str:
    return " ".join(
        [*["<|image_pad|>"] * pictures, *([instruction] if instruction else []), *([text] if text else [])]
    )


def embed_rl(text: str, pictures: int, instruction: str | None) -> str:
    said = " ".join(part for part in (instruction, text) if part)
    return (
        f"<|im_start|>user\n{PICTURE * pictures}{said}Summarize the above content in one word:<|im_end|>\n"
        "<|im_start|>assistant\n<emb>"
    )


def wemm(text: str, pictures: int, instruction: str | None) -> str:
    system = f"<|im_start|>system\n{instruction}<|im_end|>\n" if instruction else ""
    user = PICTURE * pictures + text if pictures else "\n" + text
    return f"{system}<|im_start|>user{user}<|im_end|><embedding>"


def ume_r1(text: str, pictures: int, instruction: str | None) -> str:
    said = " ".join(part for part in (instruction, text) if part)
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{PICTURE * pictures}{said}\n<disc_emb>"
    )


ASKED = (  # of UME-R1 after <disc_emb>
    "\nRepresent the above input text, images, videos, or any combination of the three as embeddings. \n"
    "First output the thinking process in <think> </think> tags and then summarize the entire input in a word or "
    "sentence. \nFinally, use the <gen_emb> tag to represent the entire input.<|im_end|>\n<|im_start|>assistant\n"
)

PROMPTS: dict[str, Callable[[str, int, str | None], str]] = {
    "qwen3-vl-embedding": qwen3_vl_embedding,
    "gme-qwen2-vl": gme,
    "vlm2vec-v2": vlm2vec,
    "embed-rl": embed_rl,
    "wemm": wemm,
    "ume-r1": ume_r1,
    "rime": ume_r1,
}
PIXELS = {  # least and most of a picture
    "qwen3-vl-embedding": (4 * 32**2, 1800 * 32**2),
    "gme-qwen2-vl": (256 * 28**2, 1280 * 28**2),
    "embed-rl": (128 * 32**2, 768 * 32**2),
    "ume-r1": (784, 2_359_296),
}
NUMBERED_LIKE_TEXT = ("gme-qwen2-vl", "vlm2vec-v2")


def loaded(recipe: str, folder: Path) -> tuple[Any, Any]:
    """Load the class with a language-model head, and the processor; adapters are added to the weights by hand."""
    from safetensors.torch import load_file
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if recipe != "vlm2vec-v2":
        return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base, weights = said["base_model_name_or_path"], load_file(folder / "adapter_model.safetensors")
    vlm = AutoModelForImageTextToText.from_pretrained(base).eval()
    layers = vlm.model.language_model.layers
    with torch.no_grad():
        for name, down in weights.items():
            if name.endswith("lora_A.weight"):
                path = name.split(".layers.")[1].removesuffix(".lora_A.weight")
                up = weights[name.replace("lora_A", "lora_B")]
                layers.get_submodule(path).weight += said["lora_alpha"] / said["r"] * up @ down
    return vlm, AutoProcessor.from_pretrained(base)


@torch.inference_mode()
def direct_vector(recipe: str, vlm: Any, processor: Any, value: Mapping[str, Any]) -> Tensor:
    """Embed `text`, `image` (a list) and `instruction`."""
    pictures = value.get("image", [])
    prompt = PROMPTS[recipe](value.get("text", ""), len(pictures), value.get("instruction"))
    return normalize(states(recipe, vlm, processor, prompt, pictures)[0, -1], dim=0)


def states(recipe: str, vlm: Any, processor: Any, prompt: str, pictures: list[Any]) -> Tensor:
    size = PIXELS.get(recipe)
    images = {"size": {"shortest_edge": size[0], "longest_edge": size[1]}} if size else {}
    batch = processor(text=[prompt], images=pictures or None, return_tensors="pt", images_kwargs=images)
    if recipe not in NUMBERED_LIKE_TEXT:
        return vlm(**batch, output_hidden_states=True).hidden_states[-1]
    # pictures are put in by hand, and the language model is called alone: it numbers all tokens one after another
    embeddings = vlm.get_input_embeddings()(batch["input_ids"])
    if pictures:
        seen = vlm.model.visual(
            batch["pixel_values"], grid_thw=batch["image_grid_thw"], return_dict=True
        ).pooler_output
        embeddings[batch["input_ids"] == vlm.config.image_token_id] = seen
    return vlm.model.language_model(inputs_embeds=embeddings).last_hidden_state


@torch.inference_mode()
def video_vector(recipe: str, vlm: Any, processor: Any, frames: Any, metadata: Any, text: str) -> Tensor:
    """Embed a video, whose frames are sampled already, before a text."""
    video = {"vlm2vec-v2": "<|video_pad|> ", "wemm": "\n<|video_pad|>"}
    prompt = PROMPTS[recipe](text, 1, None)
    picture = "<|image_pad|> " if recipe == "vlm2vec-v2" else PICTURE
    prompt = prompt.replace(picture, video.get(recipe, "<|vision_start|><|video_pad|><|vision_end|>"))
    options = {"do_sample_frames": False, "video_metadata": [metadata], "input_data_format": "channels_last"}
    batch = processor(text=[prompt], videos=[frames], return_tensors="pt", videos_kwargs=options)
    places = torch.arange(batch["input_ids"].shape[1]).expand(3, 1, -1)
    numbered = {"position_ids": places} if recipe in NUMBERED_LIKE_TEXT else {}
    return normalize(vlm.base_model(**batch, **numbered).last_hidden_state[0, -1], dim=0)


@torch.inference_mode()
def reasoned_by_generate(
    vlm: Any, processor: Any, value: Mapping[str, Any], suppressed: list[int], most: int
) -> tuple[Tensor, list[int]]:
    """Generate greedily after UME-R1's question, end with <gen_emb>, and read the state there."""
    pictures = value.get("image", [])
    prompt = ume_r1(value.get("text", ""), len(pictures), value.get("instruction")) + ASKED
    size = {"shortest_edge": PIXELS["ume-r1"][0], "longest_edge": PIXELS["ume-r1"][1]}
    batch = processor(text=[prompt], images=pictures or None, return_tensors="pt", images_kwargs={"size": size})
    end = processor.tokenizer.convert_tokens_to_ids("<gen_emb>")
    rows = vlm.get_input_embeddings().weight.shape[0]
    ids = vlm.generate(
        **batch,
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[*suppressed, *range(len(processor.tokenizer), rows)],
    )[0, batch["input_ids"].shape[1] :].tolist()
    written = [token for token in ids if token != end]
    tail = torch.tensor([[*written, end]])
    longer = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], tail], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(tail)], dim=1),
    }
    if "mm_token_type_ids" in batch:
        longer["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(tail)], dim=1)
    last = vlm(**longer, output_hidden_states=True).hidden_states[-1][0, -1]
    return normalize(last, dim=0), written
