"""Compute the memory that a GPU needs for a training, part by part, from the parameters of the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from experiments.recipes.activations import bytes_per_token, vision_bytes_per_patch
from experiments.recipes.sizes import Size, build
from mmemb_r1.modeling.token_logps_mmemb_r1 import TOKENS_AT_ONCE
from mmemb_r1.training.adapters import freeze_vision_tower, lora_config, with_adapters

GB = 1e9
CARD = 80  # GB
FITS = 0.9 * CARD  # the rest is for the CUDA context, kernels' workspaces and fragments
FLOAT32, BFLOAT16 = 4, 2
NF4 = 0.5 + 4 / 64  # bytes of a weight: 4 bits, and a float32 scale for each block of 64
LOGIT_COPIES = 3  # float32 logits of a chunk, their probabilities, and their gradient
PATCHES_PER_TOKEN, PATCH_VALUES = 4, 3 * 2 * 16 * 16  # of pictures
METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Plan:
    """
    Say what is trained, and what a GPU runs at once.

    Args:
        phase: `"joint"` or `"adaptive"`.
        method: `"full"` (every weight, but in the joint phase those of the vision tower), `"lora"`, or `"qlora"` (4
            bits below adapters).
        processes: GPUs.
        sharded: whether FSDP2 parts the weights among them; otherwise each has a copy (DDP).
        tokens: of a forward pass with gradient: `mini_batch_tokens` of the joint phase; of the adaptive one those of
            all rollouts of a GPU, with their prompts.
        rollout_tokens: of the rollouts that a GPU draws at once, with their prompts. Default: `tokens`.
        picture_share: how many of them stand for parts of pictures.
        checkpointing: whether activations are computed again in the backward pass.
        batch: pairs of all GPUs, of which vectors are kept (gradient caching).
        rank: of the adapters.
    """

    phase: str
    method: str
    processes: int = 1
    sharded: bool = False
    tokens: int = 8192
    rollout_tokens: int | None = None
    picture_share: float = 0.75
    checkpointing: bool = True
    batch: int = 512
    rank: int = 16

    @property
    def trains_vision(self) -> bool:
        """Whether the vision tower is trained: the adaptive phase freezes nothing."""
        return self.phase == "adaptive" and self.method == "full"


@dataclass(frozen=True)
class Counts:
    """Parameters of a model: that are trained, that can be quantised, that stay as they are, and of its parts."""

    trained: int
    quantised: int
    kept: int
    layer: int  # of one decoder layer
    layers: int  # how many there are
    vision: int

    @property
    def all(self) -> int:
        return self.trained + self.quantised + self.kept


@dataclass(frozen=True)
class Memory:
    """GB of a GPU, by what needs them."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    logits: float
    rollouts: float
    batch: float

    @property
    def total(self) -> float:
        """Rollouts are over when activations are kept."""
        parts = asdict(self)
        while_training = parts["activations"] + parts["logits"] + parts["batch"]
        return sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference")) + max(
            parts["rollouts"], while_training
        )


def prepared(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a model ready for a plan as the trainers do: adapters, or the vision tower frozen."""
    if plan.method == "full":
        if not plan.trains_vision:
            freeze_vision_tower(model)
        return model
    with torch.device(next(model.parameters()).device):  # adapters go where the weights are, be it nowhere
        return with_adapters(model, lora_config(model, r=plan.rank))


def count(model: nn.Module) -> Counts:
    """Count the parameters of a model that is ready to be trained."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    layers, tower = base.vlm.get_decoder().layers, base.vlm.base_model.get_encoder(modality="image")
    linear = {
        id(part.weight) for part in layers.modules() if isinstance(part, nn.Linear) and not part.weight.requires_grad
    }
    parameters = list(model.parameters())
    trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
    quantised = sum(weight.numel() for weight in parameters if id(weight) in linear)
    return Counts(
        trained=trained,
        quantised=quantised,
        kept=sum(weight.numel() for weight in parameters) - trained - quantised,
        layer=sum(weight.numel() for weight in layers[0].parameters()),
        layers=len(layers),
        vision=sum(weight.numel() for weight in tower.parameters()),
    )


def state_bytes(counts: Counts, plan: Plan) -> dict[str, float]:
    """
    Bytes of weights, gradients and optimizer (Adam), without what is gathered or cast for a pass.

    Trained weights, their gradients and both moments are float32; below adapters, weights are bfloat16 or, where they
    are quantised, 4 bits. A model that is sharded is in equal parts on all GPUs.
    """
    frozen = FLOAT32 if plan.method == "full" else BFLOAT16
    quantised = NF4 if plan.method == "qlora" else frozen
    share = plan.processes if plan.sharded else 1
    weights = FLOAT32 * counts.trained + quantised * counts.quantised + frozen * counts.kept
    return {
        "weights": weights / share,
        "gradients": FLOAT32 * counts.trained / share,
        "optimizer": 2 * FLOAT32 * counts.trained / share,
    }


def passing_bytes(counts: Counts, plan: Plan) -> dict[str, float]:
    """
    Bytes of what a pass needs beside that: casts of weights, parts that are gathered, buckets that are averaged.

    FSDP2 gathers in bfloat16 all but the layers for the whole pass and two layers at a time; gradients of these are
    there in bfloat16 and, to be summed, in float32. Without it, autocast keeps a bfloat16 copy of what is trained, and
    DDP a float32 bucket for every gradient.
    """
    if plan.sharded:
        rest = counts.all - counts.layers * counts.layer
        gathered = rest + 2 * counts.layer
        reduced = max(rest - counts.vision, 2 * counts.layer)
        return {"weights": BFLOAT16 * gathered, "gradients": (BFLOAT16 + FLOAT32) * reduced}
    buckets = FLOAT32 * counts.trained if plan.processes > 1 else 0
    return {"weights": BFLOAT16 * counts.trained, "gradients": buckets}


def activation_bytes(size: Size, plan: Plan) -> float:
    """
    Bytes of activations in a pass with gradient.

    With checkpointing each layer's input is kept, and one layer's activations, with as much again for their gradients;
    without, those of all layers. A vision tower that is trained does the same, but accelerate's FSDP checkpoints the
    decoder alone. One that is frozen keeps nothing: its widest states are there while it runs.
    """
    kind = "sharded" if plan.sharded else "full" if plan.method == "full" else "lora"
    element = FLOAT32 if kind == "full" else BFLOAT16
    layer = bytes_per_token(size, kind)
    inputs = size.layers * size.hidden * element
    decoder = plan.tokens * (inputs + 2 * layer if plan.checkpointing else (size.layers + 1) * layer)
    patches = plan.tokens * plan.picture_share * PATCHES_PER_TOKEN
    if plan.trains_vision:
        block = vision_bytes_per_patch(size, kind)
        again = plan.checkpointing and not plan.sharded
        inputs = size.vision_layers * size.vision_hidden * element
        states = inputs + 2 * block if again else (size.vision_layers + 1) * block
    else:
        states = BFLOAT16 * (2 * size.vision_intermediate + 6 * size.vision_hidden)
    return decoder + patches * (FLOAT32 * PATCH_VALUES + states)


def memory_of(size: Size, plan: Plan, counts: Counts | None = None) -> Memory:
    """Add up what a GPU needs for a plan; `counts` are those of the model, which is built without memory otherwise."""
    counts = counts or count(prepared(build(size), plan))
    state, passing = state_bytes(counts, plan), passing_bytes(counts, plan)
    frozen = FLOAT32 * counts.all if plan.phase == "adaptive" and plan.method == "full" else 0  # adapters share theirs
    rollouts = (plan.rollout_tokens or plan.tokens) * size.kv_bytes if plan.phase == "adaptive" else 0
    if plan.sharded and rollouts:  # the model and the frozen one are whole while they draw and score
        rollouts += 2 * BFLOAT16 * counts.all
    vectors = 2 * 2 * plan.batch * 2 * size.hidden * FLOAT32 if plan.phase == "joint" else 0  # sides, paths, gradients
    return Memory(
        weights=(state["weights"] + passing["weights"]) / GB,
        gradients=(state["gradients"] + passing["gradients"]) / GB,
        optimizer=state["optimizer"] / GB,
        reference=frozen / (plan.processes if plan.sharded else 1) / GB,
        activations=activation_bytes(size, plan) / GB,
        logits=TOKENS_AT_ONCE * size.vocabulary * FLOAT32 * LOGIT_COPIES / GB,
        rollouts=rollouts / GB,
        batch=vectors / GB,
    )
