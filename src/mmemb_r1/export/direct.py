"""Write the direct path of a checkpoint as a plain folder of sentence-transformers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Normalize
from torch import nn
from transformers import ProcessorMixin

from mmemb_r1.export.folders import card_facts, check_new, check_weights, written_whole
from mmemb_r1.modeling.backbones_mmemb_r1 import last_norm, limited_processor
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.tokens_mmemb_r1 import WORD_JOINER, control_strings
from mmemb_r1.recipes.proof import TOLERANCE, Proof, sample_inputs, unlimited
from mmemb_r1.runs import write_json
from mmemb_r1.sentence_transformers import MMEmbR1

POOLINGS = {"last": "lasttoken", "mean": "mean_tokens"}  # ours -> the last part of the key in a pooling's config
POOLING_KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
KINDS = ("text", "image", "message")


def export_direct(model: MMEmbR1, folder: str | Path, *, force: bool = False) -> Proof:
    """
    Write the direct path as a plain folder of sentence-transformers, load that, and compare its vectors.

    The folder holds the backbone in its own layout, a chat template that does what this package does before it, and
    the modules Transformer, Pooling, Dense (for a projection or `truncate_dim`) and Normalize: it needs neither this
    package nor remote code. Prompts, the default prompt and the similarity are kept; gate and rationales are not.

    Args:
        model: a checkpoint, in the dtype that is written.
        folder: a new or empty one.
        force: write it also if the vectors differ.

    Returns:
        How far the vectors of ten inputs are from those of `reasoning="never"`.

    Raises:
        ValueError: for what a plain folder can't say, see [`check_plain`]; if vectors differ by more than rounding
            explains; if the folder holds something.
    """
    check_new(folder)
    check_plain(model)
    with written_whole(folder) as made:
        _write(model, made)
        proof = _compared(model, made)
        if not (proof.holds or force):
            raise ValueError(
                f"The plain folder does not give the vectors of this checkpoint: {proof.described()} (allowed: "
                f"{TOLERANCE:.0e} in float32), the worst for {proof.worst!r}. Nothing is written. This backbone needs "
                "more than sentence-transformers does for it; load the checkpoint itself with "
                "SentenceTransformer(..., trust_remote_code=True)."
            )
    return proof


def check_plain(model: MMEmbR1) -> None:
    """
    Refuse a checkpoint whose direct vectors a plain folder can't give.

    Raises:
        ValueError: for a pooling other than `last` and `mean`, positions that count pictures like text, modules that
            are not sentence-transformers' own, adapters that are not merged, and quantised weights.
    """
    inner, instead = (
        model[0].model,
        "load the checkpoint itself, with SentenceTransformer(..., trust_remote_code=True)",
    )
    config = inner.config
    if config.pooling not in POOLINGS:
        raise ValueError(
            f"pooling={config.pooling!r} has no counterpart in sentence-transformers; allowed: "
            f"{', '.join(POOLINGS)}. Instead, {instead}."
        )
    if getattr(config.vlm_config, "sequential_positions", False):
        raise ValueError(
            "This embedder numbers the tokens of pictures like text (positions: sequence in its recipe), and a plain "
            f"folder has no setting for that. Use the embedder that it was converted from, or {instead}."
        )
    for module in list(model)[1:]:
        if not type(module).__module__.startswith("sentence_transformers."):
            raise ValueError(
                f"The module {type(module).__name__} is not sentence-transformers' own, and would need remote code; "
                f"take it off, or {instead}."
            )
    check_weights(inner)


def _write(model: MMEmbR1, folder: Path) -> None:
    inner = model[0].model
    with _even_norm(inner):
        inner.vlm.save_pretrained(folder)
    _plain_processor(model).save_pretrained(folder)
    entry = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {kind: entry for kind in KINDS} | {"message": {**entry, "format": "structured"}},
        "module_output_name": "token_embeddings",
    }
    write_json(folder / "sentence_bert_config.json", transformer)
    config = SentenceTransformer._get_model_config(model)
    config.pop("truncate_dim", None)  # it is a module's, so that what is shortened has unit norm again
    write_json(folder / "config_sentence_transformers.json", config)

    kind = POOLINGS[inner.config.pooling]
    pooling = {"word_embedding_dimension": inner.config.hidden_size, "include_prompt": True}
    pooling |= {f"pooling_mode_{key}": key == kind for key in POOLING_KEYS}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    # by these names, which every version of sentence-transformers and many other programs know
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    for module in [*_head_modules(model), *list(model)[1:]]:
        name = f"{len(modules)}_{type(module).__name__}"
        (folder / name).mkdir()
        module.save(str(folder / name))
        own = isinstance(module, Dense | Normalize)
        where = "sentence_transformers.models" if own else type(module).__module__
        modules.append((name, f"{where}.{type(module).__name__}"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    _write_card(model, folder / "README.md")


def _head_modules(model: MMEmbR1) -> Iterator[Module]:
    """Make what comes after the pooling: a projection, which also leaves the first dimensions alone, and the norm."""
    inner = model[0].model
    config, head = inner.config, inner.embedding_head
    width = config.embedding_dim or config.hidden_size
    kept = min(size for size in (config.truncate_dim, model.truncate_dim, width) if size is not None)
    if head.projection is not None or kept < width:
        weight = torch.eye(width) if head.projection is None else head.projection.weight.detach().cpu()
        weight = weight[:kept].to(inner.dtype, copy=True)  # (D, H)
        yield Dense(config.hidden_size, kept, bias=False, activation_function=nn.Identity(), init_weight=weight)
    if config.normalize:
        yield Normalize()


@contextmanager
def _even_norm(inner: MMEmbR1Model) -> Iterator[None]:
    """
    Let the backbone's last norm scale all dimensions alike while it is written, where vectors are read before that
    norm: what it gives then has the direction of what it gets.
    """
    if inner.config.embed_state != "unnormed":
        yield
        return
    weight = next(last_norm(inner.vlm).parameters())
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(1)
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def _plain_processor(model: MMEmbR1) -> ProcessorMixin:
    """Make a processor whose settings and template do by themselves what this package does before it is called."""
    config = model[0].model.config
    processor = copy.deepcopy(limited_processor(model.processor, config.max_image_tokens))
    processor.tokenizer.padding_side = "left"
    controls = sorted(control_strings(processor), key=len, reverse=True)
    marker = processor.tokenizer.convert_ids_to_tokens(config.embed_token_id)
    template = files(__package__).joinpath("prompt.jinja").read_text(encoding="utf-8").removesuffix("\n")
    parts: Mapping[str, str] = {
        "CONTROLS": json.dumps(controls, ensure_ascii=False),
        "JOINER": WORD_JOINER,
        "END": f"-{len(marker)}" if config.embed_position == "before" else "",
        "TEMPLATE": processor.chat_template,
    }
    processor.chat_template = re.sub(rf"\b({'|'.join(parts)})\b", lambda name: parts[name[0]], template)
    if processor.tokenizer.chat_template is not None:
        processor.tokenizer.chat_template = processor.chat_template
    return processor


def _write_card(model: MMEmbR1, path: Path) -> None:
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "multimodal"],
        **card_facts(model),
    )
    text = files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def _compared(model: MMEmbR1, folder: Path) -> Proof:
    """Compare the vectors of a written folder with those of the model, on ten inputs."""
    config = model[0].model.config
    plain = SentenceTransformer(
        str(folder), device=str(model.device), local_files_only=True, model_kwargs={"dtype": model[0].model.dtype}
    )
    inputs = sample_inputs()
    # sentence-transformers takes no chats beside other inputs in one call
    turned = {"text": "What is this?", "image": inputs["picture"]["image"][0]}
    asked = {**inputs, "text before its picture": turned}
    with unlimited(config, ["max_text_tokens"]):
        ours = model.encode(list(asked.values()), reasoning="never", convert_to_tensor=True).cpu()
    chats = [_as_messages(value) for value in inputs.values()]
    theirs = torch.cat([plain.encode(some, convert_to_tensor=True) for some in (chats, [turned])]).float().cpu()
    return Proof(
        recipe="direct",
        dtype=str(model[0].model.dtype).removeprefix("torch."),
        direct={name: float((a - b).abs().max()) for name, a, b in zip(asked, ours, theirs, strict=True)},
        reasoned={},
        cosine=float(torch.cosine_similarity(ours.float(), theirs, dim=-1).min()),
    )


def _as_messages(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Say an input as chat messages, the only form of sentence-transformers that holds an instruction."""
    parts = [{"type": "image", "image": picture} for picture in value.get("image", ())]
    parts += [{"type": "text", "text": value["text"]}] if "text" in value else []
    instruction = [{"type": "text", "text": value.get("instruction", "")}]
    system = [{"role": "system", "content": instruction}] if "instruction" in value else []
    return [*system, {"role": "user", "content": parts}]
