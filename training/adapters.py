"""Train with LoRA (needs peft): small adapters in the language model; heads and control tokens in full."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import BitsAndBytesConfig


ALL_LINEAR = "all-linear"
# Fields of peft's LoraConfig that `lora_config` fills in itself -> the hint for a user who sets one.
_OWN_FIELDS = {
    "lora_alpha": "it is called alpha",
    "lora_dropout": "it is called dropout",
    "modules_to_save": "gate and head are trained in full already",
    "trainable_token_indices": "the rows of the control tokens are trained already",
    "task_type": "it is always the same here",
    "inference_mode": "load_adapters(trainable=False) does that",
}
_OWN_OPTIONS = ("r", "alpha", "dropout", "target_modules", "adapt_vision_tower")
_ALLOWED = f"allowed: {', '.join(_OWN_OPTIONS)} and the fields of peft's LoraConfig"
_QUANTISES = re.compile("bit|bnb")  # in the names of ModelConfig's fields
# What peft puts into the names of a module's own weights, and the weights that it adds.
_ADDED_PARTS = re.compile(r"\.(base_layer|token_adapter|modules_to_save\.default)(?=\.)")
_ADDED_WEIGHTS = re.compile(r"(^|\.)(lora_|trainable_tokens_|original_module\.)")
# Everything that only pictures pass through, in the backbones that transformers knows.
_VISION_PARTS = r".*\.(visual|vision_tower|vision_model|connector|multi_modal_projector)"


def lora_config(
    model: MMEmbR1Model,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    adapt_vision_tower: bool = False,
    **options: Any,
) -> LoraConfig:
    """
    Configure what LoRA trains of a model: adapters on the linear layers of its language model; the reasoning gate and
    the embedding head in full; and, of the token embeddings, the rows of `<|embed|>`, `<think>` and `</think>`, of
    which at least one is new to the backbone.

    Args:
        model: the model to be adapted; nothing is done to it.
        r: rank of the adapters; their scale is `alpha / r`.
        dropout: in front of the adapters.
        target_modules: `"all-linear"`, or the last names of linear layers, for example `["q_proj", "v_proj"]`. Any
            other text is a regular expression that full names of modules have to match, wherever they are.
        adapt_vision_tower: whether linear layers of these names get adapters in the vision tower as well.
        **options: further fields of peft's `LoraConfig`, for example `use_rslora`.

    Raises:
        ValueError: if no linear layer has such a name, or there is no such option.
    """
    peft = _peft()
    known = {field.name for field in dataclasses.fields(peft.LoraConfig) if field.init}
    for name in options:
        if name in _OWN_FIELDS or name not in known:
            near = nearest_name(name, {*_OWN_OPTIONS, *known}.difference(_OWN_FIELDS))
            raise ValueError(f"LoRA has no option {name!r} here; {_OWN_FIELDS.get(name, _ALLOWED + near)}")
    if isinstance(target_modules, str) and target_modules != ALL_LINEAR:
        pattern = target_modules
    else:
        towers = [model.vlm.get_decoder(), *([_vision_tower(model)] if adapt_vision_tower else [])]
        names = _linear_names(model, towers)
        if target_modules != ALL_LINEAR:
            last = {name.rpartition(".")[2] for name in names}
            if missing := [name for name in target_modules if name not in last]:
                raise ValueError(f"target_modules: there is no linear layer {missing[0]!r}; there are {sorted(last)}.")
            names = [name for name in names if name.rpartition(".")[2] in target_modules]
        pattern = _pattern(names, {name for name, _ in model.named_modules()}.difference(names))
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    # in most small backbones the two are one tensor: peft then lets the output follow the input
    layers = {id(embedding)} if output is None or output.weight is embedding.weight else {id(embedding), id(output)}
    return peft.LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=pattern,
        # peft goes by the ends of names: "head" would be "lm_head" too
        modules_to_save=_linear_names(model, [model.gate, model.embedding_head]),
        trainable_token_indices={
            name: sorted(control_ids(model)) for name, module in model.named_modules() if id(module) in layers
        },
        **options,
    )


def with_adapters(model: MMEmbR1Model, peft_config: LoraConfig, seed: int = 0) -> PeftModel:
    """
    Put adapters into a model, in place, and return it wrapped by peft; another model with adapters is a `ValueError`.

    Trained weights are float32 whatever the model's dtype, for small steps vanish in bfloat16: train under autocast
    (`bf16=True`) then. All that the configuration, best from [`lora_config`], does not name is frozen. The `seed` is
    of the adapters' first weights: all processes of a run have to start from the same.
    """
    peft = _peft()
    _require_plain(model)
    devices = [model.device] if model.device.type == "cuda" else []
    with _ties_kept(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, peft_config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def load_adapters(model: MMEmbR1Model, folder: str | os.PathLike[str], trainable: bool = False) -> PeftModel:
    """
    Put adapters that `save_pretrained` of the wrapped model wrote into the model that they were trained for, in place,
    to be trained on if `trainable`.

    Raises:
        ValueError: if there are no adapters, the model has some already, or they are another model's.
    """
    peft = _peft()
    _require_plain(model)
    try:
        rows = getattr(peft.PeftConfig.from_pretrained(str(folder)), "trainable_token_indices", None)
    except (OSError, ValueError) as error:
        raise ValueError(f"There are no adapters in {folder}: its adapter_config.json can't be read.") from error
    for ids in rows.values() if isinstance(rows, Mapping) else []:
        if set(ids) != control_ids(model):
            raise ValueError(
                f"The adapters in {folder} are another model's: their control tokens are {sorted(ids)}, this model's "
                f"{sorted(control_ids(model))}. Load the checkpoint that they were trained on."
            )
    try:
        with _ties_kept(model), warnings.catch_warnings():
            # what is missing peft fills at random, and only warns
            warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
            return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (RuntimeError, UserWarning, ValueError) as error:
        raise ValueError(f"The adapters in {folder} don't fit this model: {str(error):.300}") from error


def merged(model: PeftModel) -> MMEmbR1Model:
    """
    Add adapters to the weights of their model, in place, and return it; `model` is not to be used any more.

    A model without adapters, or with quantised weights, is a `ValueError`.
    """
    peft = _peft()
    if not isinstance(model, peft.PeftModel):
        raise ValueError(f"Got a {type(model).__name__}, which has no adapters; pass what with_adapters returned.")
    if getattr(model, "is_quantized", False):
        raise ValueError(
            "Adapters can't be merged into quantised weights without loss. Save them, load the checkpoint without "
            "quantisation, and merge there: merged(load_adapters(model, folder))."
        )
    plain = model.merge_and_unload(safe_merge=True)
    return plain.to(plain.dtype).requires_grad_(True)  # as if it had been loaded


@contextmanager
def as_merged(model: PeftModel) -> Iterator[None]:
    """
    Let a model with adapters give what it will give when they are merged, for the length of a block, in which nothing
    may be trained: merging rounds where weights are not float32. Quantised weights, which nothing is merged into, are
    left alone. The weights that change are kept on the CPU meanwhile, and come back to the bit.
    """
    if model.get_base_model().dtype == torch.float32 or getattr(model, "is_quantized", False):
        yield
        return
    with _merged_meanwhile(model):
        yield


@contextmanager
def backbone_weights(model: MMEmbR1Model | PeftModel) -> Iterator[dict[str, Tensor]]:
    """
    Give the weights of a model's backbone, name -> tensor, for the length of a block, in which nothing may be trained:
    as a plain vision-language model has them, with what its adapters add. A tensor that the backbone has twice, as
    tied embeddings are, is there under both names. Quantised weights are a `ValueError`.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError("Adapters can't be merged into quantised weights; load the model without quantisation.")
    adapted = hasattr(model, "peft_config")
    with _merged_meanwhile(model) if adapted else nullcontext():
        plain = model.get_base_model() if adapted else model
        named = plain.vlm.state_dict().items()
        yield {_ADDED_PARTS.sub("", name): value for name, value in named if not _ADDED_WEIGHTS.search(name)}


@contextmanager
def _merged_meanwhile(model: PeftModel) -> Iterator[None]:
    """Merge adapters for the length of a block; weights then come back to the bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = model.get_base_model()
    heads = [weight for part in (plain.gate, plain.embedding_head) for weight in part.parameters()]
    layers = [layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    changed = [*heads, *(weight for layer in layers for weight in layer.parameters())]
    kept = [(weight, weight.detach().to("cpu", copy=True)) for weight in changed]
    try:
        with torch.autocast(plain.device.type, enabled=False):  # as they will be merged
            model.base_model.merge_adapter(safe_merge=True)
        for weight in heads:
            weight.data = weight.data.to(plain.dtype).to(weight.dtype)
        yield
    finally:
        model.base_model.unmerge_adapter()
        for weight, before in kept:
            weight.data.copy_(before)


def adapter_facts(peft_config: Any | None) -> dict[str, str]:
    """Record what adapters were trained, for the model card; nothing if the whole model was."""
    if peft_config is None:
        return {}
    return {"adapters": f"LoRA, rank {peft_config.r}, alpha {peft_config.lora_alpha}"}


def freeze_vision_tower(model: MMEmbR1Model) -> None:
    """
    Freeze what only pictures and videos pass through: the vision tower and the connector to the language model, which
    some families build into the tower and others beside it. It is a `ValueError` if there is no tower.
    """
    _vision_tower(model)
    language = [model.vlm.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    kept = {id(parameter) for module in language if module is not None for parameter in module.parameters()}
    for parameter in model.vlm.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def quantization_config(**options: Any) -> BitsAndBytesConfig:
    """
    Configure how a checkpoint is quantised, for QLoRA: `MMEmbR1(folder, model_kwargs={"quantization_config": ...})`.

    Gate, embedding head, output embeddings and whatever only pictures pass through stay as they are. Options are those
    of TRL's `ModelConfig` for it, `load_in_4bit` or `load_in_8bit` among them, and `dtype`, in which it computes
    (default: bfloat16); others are a `ValueError`. It needs bitsandbytes.
    """
    from transformers.utils import is_bitsandbytes_available
    from trl import ModelConfig
    from trl.trainer.utils import get_quantization_config

    allowed = ["dtype", *(field.name for field in dataclasses.fields(ModelConfig) if _QUANTISES.search(field.name))]
    if unknown := sorted(set(options) - set(allowed)):
        near = nearest_name(unknown[0], allowed)
        raise ValueError(f"Quantisation has no option {unknown[0]!r}; allowed: {', '.join(allowed)}{near}")
    if not (options.get("load_in_4bit") or options.get("load_in_8bit")):
        raise ValueError(
            "Quantisation is set, but neither load_in_4bit nor load_in_8bit is true. Set one, or leave it out."
        )
    model_config = ModelConfig(**{"dtype": "bfloat16", **options})
    if not is_bitsandbytes_available():
        raise ImportError(
            "Quantised training needs bitsandbytes: pip install bitsandbytes. LoRA works without it as well: leave "
            "quantisation out."
        )
    config = get_quantization_config(model_config)
    config.llm_int8_skip_modules = ["gate", "embedding_head", "lm_head", _VISION_PARTS]
    return config


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'mmemb-r1[peft]'.") from error
    return peft


def _require_plain(model: MMEmbR1Model) -> None:
    if hasattr(model, "peft_config"):
        raise ValueError("The model has adapters already; merge them first: merged(model).")


def control_ids(model: MMEmbR1Model) -> set[Any]:
    """
    Return the ids of `<|embed|>`, `<think>` and `</think>`, or of what the model has in their places, and of the token
    at which reasoned embeddings are read.
    """
    config = model.config
    ids = {config.embed_token_id, config.think_token_id, config.end_think_token_id, *config.closing_ids[-1:]}
    return ids - {None}


def _vision_tower(model: MMEmbR1Model) -> nn.Module:
    backbone = model.vlm.base_model
    tower = backbone.get_encoder(modality="image")
    if tower is backbone:  # transformers' way to say that it knows of none
        raise ValueError(f"{type(backbone).__name__} has no vision tower that transformers knows of.")
    return tower


def _linear_names(model: nn.Module, parts: Iterable[nn.Module]) -> list[str]:
    """List full names of the linear layers in some parts of a model."""
    layers = {id(module) for part in parts for module in part.modules() if isinstance(module, nn.Linear)}
    return [name for name, module in model.named_modules() if id(module) in layers]


def _pattern(names: Sequence[str], others: Iterable[str]) -> str:
    """
    Write a regular expression for names of modules. Layers that differ in their number share an alternative, unless it
    would match one of the others.

    >>> print(_pattern(["text.0.q", "text.1.q", "mlp.0", "mlp.2"], ["text", "mlp.1"]))
    text\\.\\d+\\.q|mlp\\.0|mlp\\.2
    """
    taken = {_any_number(name) for name in others}
    alternatives = (re.escape(name) if _any_number(name) in taken else _any_number(name) for name in names)
    return "|".join(dict.fromkeys(alternatives))


def _any_number(name: str) -> str:
    return r"\.".join(r"\d+" if part.isdecimal() else re.escape(part) for part in name.split("."))


@contextmanager
def _ties_kept(model: MMEmbR1Model) -> Iterator[None]:
    """
    Let peft see that input and output embeddings are one tensor, and check that it did: trained rows would be the
    input's alone otherwise, and the output's as well once they are merged.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is embedding.weight
    if model._tied_weights_keys is None:
        model._tied_weights_keys = {}  # peft looks for the backbone's ties only if the model around it may have some
    yield
    rows = getattr(model.get_input_embeddings(), "token_adapter", None)
    follows = getattr(getattr(model.get_output_embeddings(), "token_adapter", None), "tied_adapter", None)
    if tied and rows is not None and follows is not rows:
        raise ValueError(
            "Input and output embeddings are one tensor, but the config denies it (tie_word_embeddings); set it."
        )
