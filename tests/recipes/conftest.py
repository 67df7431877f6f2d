"""Tiny random checkpoints with the classes, tokens and files of published embedders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = {  # recipe -> a folder's name, as on the Hub
    "qwen3-vl-embedding": "Qwen3-VL-Embedding-2B",
    "gme-qwen2-vl": "gme-Qwen2-VL-2B-Instruct",
    "vlm2vec-v2": "VLM2Vec-V2.0",
    "embed-rl": "Embed-RL-2B",
    "wemm": "WeMM-Embedding-2B",
    "ume-r1": "UME-R1-2B",
    "rime": "RIME-2B",
}
FAMILY = {"qwen3-vl-embedding": "qwen3_vl", "embed-rl": "qwen3_vl", "wemm": "qwen3_vl"}
TOKENS = {
    "embed-rl": ["<emb>"],
    "wemm": ["<embedding>"],
    "ume-r1": ["<gen_emb>", "<disc_emb>"],
    "rime": ["<gen_emb>", "<disc_emb>"],
}
POOLING = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def randomised(vlm: Any, seed: int = 0) -> Any:
    """Make states depend strongly on what is read, and a final norm that turns them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in vlm.named_parameters():
            if weight.ndim > 1:
                weight.mul_(6)
            elif "norm" in name:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
    return vlm


def with_tokens(vlm: Any, processor: Any, tokens: list[str]) -> None:
    """Add tokens in the rows that a vocabulary has to spare, or new ones."""
    import torch

    processor.tokenizer.add_tokens(tokens)
    if tokens and len(processor.tokenizer) > vlm.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            vlm.resize_token_embeddings(len(processor.tokenizer) + 3, mean_resizing=False)


def save_adapters(vlm: Any, folder: Path, base: str) -> None:
    """Save random adapters under the names that they had before transformers 4.52."""
    import peft
    import torch
    from safetensors.torch import load_file, save_file

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(vlm, peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder)
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    old = {name.replace("model.language_model.", "model."): weight for name, weight in load_file(file).items()}
    save_file(old, file)
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**said, "base_model_name_or_path": base}), encoding="utf-8")


def build(recipe: str, root: Path, recurrent_vlm: Callable[..., Any]) -> Path:
    """Write the stand-in of a recipe's checkpoint, and return its folder."""
    from mmemb_r1.tiny import build_tiny_vlm

    folder = root / NAMES[recipe]
    vlm, processor = build_tiny_vlm(FAMILY.get(recipe, "qwen2_vl"))
    if recipe == "wemm":
        processor.tokenizer.add_tokens(TOKENS[recipe])
        vlm = wemm_vlm(recurrent_vlm(len(processor.tokenizer)), processor)
    else:
        with_tokens(vlm, processor, TOKENS.get(recipe, []))
    randomised(vlm)
    if recipe == "vlm2vec-v2":
        base = root / "Qwen2-VL-2B-Instruct"
        vlm.save_pretrained(base)
        processor.save_pretrained(base)
        save_adapters(vlm, folder, str(base))
        return folder
    vlm.save_pretrained(folder)
    processor.save_pretrained(folder)
    if recipe == "qwen3-vl-embedding":
        (folder / "modules.json").write_text(json.dumps(POOLING), encoding="utf-8")
    return folder


def wemm_vlm(vlm: Any, processor: Any) -> Any:
    """Give a Qwen3.5 the ids and patches of a processor."""
    config, tokenizer = vlm.config, processor.tokenizer
    for name in ("image_token", "video_token", "vision_start_token", "vision_end_token"):
        setattr(config, f"{name}_id", getattr(tokenizer, f"{name}_id"))
    return vlm


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory, recurrent_vlm: Callable[..., Any]) -> Callable[[str], Path]:
    """`stand_in(recipe)`: the folder of a tiny checkpoint that the recipe is for. Not to be changed."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("embedders")

    def folder_of(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = build(recipe, root / recipe, recurrent_vlm)
        return made[recipe]

    return folder_of
