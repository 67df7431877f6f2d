"""Write a checkpoint as a folder that vLLM serves as it is: the plain backbone, and beside it what a client needs."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from mmemb_r1.engines.boundaries import with_boundaries
from mmemb_r1.engines.checks import check_runs
from mmemb_r1.engines.http_engine import CUT, THEN
from mmemb_r1.engines.served import save_served
from mmemb_r1.export.folders import card_facts, check_new, check_weights, written_whole
from mmemb_r1.modeling.backbones_mmemb_r1 import limited_processor
from mmemb_r1.sentence_transformers import MMEmbR1

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # what is kept of the settings of generation


def export_vllm(
    model: MMEmbR1, folder: str | Path, *, name: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """
    Write a checkpoint so that vLLM serves its backbone, without a plugin and without code of ours.

    The folder holds the backbone in its own layout, its vocabulary cut to the tokens that there are; a processor that
    keeps `max_image_tokens` by its own settings; a tokenizer that cuts texts at U+FDD0, see [`with_boundaries`]; and
    the chat template, which ends prompts in the marker, and after it writes the text of a variable `mmemb_r1_then` (by
    default none), so that a client can go on with a prompt; where states are read before the marker,
    `mmemb_r1_cut=true` leaves that out. In `mmemb_r1/` is all but the backbone: `MMEmbR1(folder, engine=...)` loads
    it.

    Args:
        model: a checkpoint, in the dtype that is written.
        folder: a new or empty one.
        name: of the model, under which the README suggests to serve it. Default: what it was loaded as.
        revision: the commit of the Hub that it was loaded from, to be kept with the rest. Default: none is told.

    Returns:
        What `mmemb_r1/export.json` says, see [`save_served`].

    Raises:
        ValueError: for what vLLM can't run as this package does: poolings other than `last`, positions that count
            pictures like text, adapters that are not merged, quantised weights, modules after the first one, tokens
            that rationales may not hold and vLLM would write; if the folder holds something. Nothing is written.
    """
    check_new(folder)
    _check_servable(model)
    inner = model[0].model
    with written_whole(folder) as made:
        _save_backbone(inner.vlm, made, inner.config.rationale_vocab_size)
        _served_processor(model).save_pretrained(made)
        facts = save_served(model, made, revision)
        _write_readme(model, made / "README.md", name or _name_of(model), facts)
    return facts


def _check_servable(model: MMEmbR1) -> None:
    """Refuse a checkpoint that vLLM can't run as this package does, before anything is written."""
    inner = model[0].model
    check_weights(inner)
    if len(model) > 1:
        raise ValueError(
            f"The checkpoint has a module {type(model[1]).__name__} after the adaptive one, which a client of vLLM "
            "does not run; take it off, and export the rest."
        )
    check_runs(model[0], None)
    limit, known = inner.config.rationale_vocab_size, max(model.tokenizer.get_vocab().values()) + 1
    if limit is not None and known > limit:
        raise ValueError(
            f"The tokenizer has ids up to {known - 1}, and rationale_vocab_size={limit} lets rationales hold those "
            f"below {limit} only, which vLLM can't be told. Set rationale_vocab_size to {known}, and add the ids that "
            "rationales may not hold to suppressed_token_ids."
        )


def _save_backbone(vlm: PreTrainedModel, folder: Path, vocab_size: int | None) -> None:
    """Save a backbone in the layout of its family, without the rows of its vocabulary that no token has."""
    layers = [layer for layer in (vlm.get_input_embeddings(), vlm.get_output_embeddings()) if layer is not None]
    rows = layers[0].weight.shape[0]
    if vocab_size is None or vocab_size >= rows:
        vlm.save_pretrained(folder)
    else:
        whole = {id(tensor) for layer in layers for tensor in layer.parameters() if tensor.shape[0] == rows}
        cut: dict[int, Tensor] = {}  # one of tied ones

        def saved(tensor: Tensor) -> Tensor:
            if id(tensor) not in whole:
                return tensor.detach()
            return cut.setdefault(id(tensor), tensor.detach()[:vocab_size].clone())

        state = vlm.state_dict(keep_vars=True)
        vlm.save_pretrained(folder, state_dict={key: saved(tensor) for key, tensor in state.items()})
        config = copy.deepcopy(vlm.config)
        for part in (config, config.get_text_config()):
            if hasattr(part, "vocab_size"):
                part.vocab_size = vocab_size
        config.save_pretrained(folder)
    # vLLM takes settings of sampling from here, penalties too, where a request has none; ours has neither
    kept = {name: getattr(vlm.generation_config, name) for name in ENDS}
    GenerationConfig(**kept).save_pretrained(folder)


def _served_processor(model: MMEmbR1) -> ProcessorMixin:
    """Make a processor that keeps the limit of pictures, and a template that can go on after the marker."""
    config = model[0].model.config
    processor = copy.deepcopy(limited_processor(model.processor, config.max_image_tokens))
    processor.tokenizer = with_boundaries(processor.tokenizer)
    template = processor.chat_template.removesuffix("\n")
    if config.embed_position == "before":
        marker = len(processor.tokenizer.convert_ids_to_tokens(config.embed_token_id))
        whole = "{% set mmemb_r1_whole %}" + template + "{%+ endset %}"
        template = whole + f"{{{{ mmemb_r1_whole[:-{marker}] if {CUT} | default(false) else mmemb_r1_whole }}}}"
    processor.chat_template = template + f"{{{{ {THEN} | default('') }}}}"
    if processor.tokenizer.chat_template is not None:
        processor.tokenizer.chat_template = processor.chat_template
    return processor


def _name_of(model: MMEmbR1) -> str:
    """Find what a model was loaded as: a Hub id, or the last part of a folder's path."""
    loaded = str(getattr(model[0].model.config, "_name_or_path", "") or "")
    if not loaded:
        return "mmemb-r1"
    return Path(loaded).resolve().name if Path(loaded).exists() else loaded


def _write_readme(model: MMEmbR1, path: Path, name: str, facts: dict[str, Any]) -> None:
    kept = card_facts(model)
    data = ModelCardData(
        library_name="vllm", pipeline_tag="feature-extraction", tags=["mmemb-r1", "multimodal"], **kept
    )
    revision = f" at the revision `{facts['revision']}`" if facts["revision"] else ""
    licence = kept.get("license_name") or kept.get("license")
    text = Template(files(__package__).joinpath("vllm.md").read_text(encoding="utf-8")).substitute(
        name=name,
        origin=f"`{name}`{revision}",
        fingerprint=facts["fingerprint"],
        version=facts["version"],
        licence=f"Its licence: {licence}." if licence else "Its card names no licence.",
    )
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
