"""Configure the joint phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from trl.trainer.base_config import _BaseConfig

from mmemb_r1.training.base_trainer import TokensLeftOut
from mmemb_r1.training.joint.losses import PathWeights


@dataclass
class JointConfig(TokensLeftOut, _BaseConfig):
    """
    Configuration of [`JointTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    `per_device_train_batch_size` counts pairs. The targets of all processes, and their hard negatives, are the
    candidates of every query.

    Args:
        temperature (`float`, *optional*, defaults to `0.02`):
            Divides the cosine similarities of the contrastive terms.
        direct_direct_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the term direct query against direct target.
        reasoned_direct_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the term reasoned query against direct target: what search over a direct index does.
        direct_reasoned_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the term direct query against reasoned target.
        reasoned_reasoned_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the term reasoned query against reasoned target.
        rationale_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the language-model loss on the rationale tokens.
        weight_by_posterior (`bool`, *optional*, defaults to `False`):
            Whether that loss weighs each rationale by its posterior. Rationales are drawn from the posterior, so the
            unweighted loss is its expectation already; with weights the posterior counts twice, and pairs of which
            much was kept count less.
        gate_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the gate's warm start: cross-entropy against whether thinking pays within the batch. It means
            something only on pairs that the embedder is not fitted to; at 0 the gate is left as it is.
        gate_cost (`float`, *optional*, defaults to `0.02`):
            What a rationale has to gain to pay, as probability of the target within the batch.
        use_rationales (`bool`, *optional*, defaults to `True`):
            Whether rationales are trained on; `False` trains the direct path alone (the ablation and baseline).
        max_reasoning_rounds (`int`, *optional*, defaults to `1`):
            Segments of a rationale that are trained as rounds of their own, each with an embedding after it; what is
            left goes into the last one. At 1 a rationale is one round.
        matryoshka_dims (`list[int]`, *optional*):
            Dimensions at which the contrastive terms are taken as well, each with the same weight as the full one.
        sub_batch_size (`int`, *optional*, defaults to `8`):
            Pairs of one task that stand together in a batch, so that negatives are of the kind they are told apart
            from.
        task_weights (`dict[str, float]`, *optional*):
            How often each task is drawn, relative to the others. `None` draws tasks by their number of pairs. Tasks
            that are not named are not drawn.
        mini_batch_size (`int`, *optional*):
            Inputs that are run at once, whatever the batch size, for the price of one more forward pass (gradient
            caching). `None` runs a batch at once.
        num_length_chunks (`int`, *optional*, defaults to `2`):
            Without gradient caching: forward passes of each side of a batch, which is split by length to save padding.
        num_hard_negatives (`int`, *optional*, defaults to `0`):
            Hard negatives of each pair, drawn anew from the column `negatives` each time. They are negatives of all
            queries in the batch.
        score_mask_margin (`float`, *optional*):
            A negative whose direct cosine similarity is above the target's by more than this is taken for a false
            one and left out. `None`, the default, is right from scratch; 0.1 for pretrained backbones.
        similarity_chunk_size (`int`, *optional*, defaults to `64`):
            Rows of the similarity matrix that are held in memory at once.
        max_rationale_tokens (`int`, *optional*, defaults to `256`):
            Longer rationales are refused, not cut: a cut rationale teaches to stop in the middle.
        freeze_vision_tower (`bool`, *optional*, defaults to `False`):
            Whether the vision tower stays as it is.
        augment_pictures (`bool`, *optional*, defaults to `False`):
            Whether every training picture is shifted, turned and recoloured a little, anew each time it is drawn.
    """

    temperature: float = field(default=0.02, metadata={"help": "Divides the cosine similarities."})
    direct_direct_weight: float = field(default=1.0, metadata={"help": "Weight of direct query vs direct target."})
    reasoned_direct_weight: float = field(default=1.0, metadata={"help": "Weight of reasoned query vs direct target."})
    direct_reasoned_weight: float = field(default=0.5, metadata={"help": "Weight of direct query vs reasoned target."})
    reasoned_reasoned_weight: float = field(
        default=0.5, metadata={"help": "Weight of reasoned query vs reasoned target."}
    )
    rationale_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on rationale tokens."})
    weight_by_posterior: bool = field(default=False, metadata={"help": "Weigh that loss by the posterior as well."})
    gate_weight: float = field(default=0.0, metadata={"help": "Weight of the gate's warm start; 0: gate untouched."})
    gate_cost: float = field(default=0.02, metadata={"help": "What a rationale has to gain to pay."})
    use_rationales: bool = field(default=True, metadata={"help": "Train on rationales; False: direct path only."})
    max_reasoning_rounds: int = field(default=1, metadata={"help": "Segments trained as rounds of their own."})
    matryoshka_dims: list[int] | None = field(default=None, metadata={"help": "Further dimensions of the loss."})
    sub_batch_size: int = field(default=8, metadata={"help": "Pairs of one task that stand together."})
    task_weights: dict | str | None = field(default=None, metadata={"help": "JSON: how often each task is drawn."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Inputs per pass, with gradient caching."})
    num_length_chunks: int = field(default=2, metadata={"help": "Forward passes per side, each of similar lengths."})
    num_hard_negatives: int = field(default=0, metadata={"help": "Hard negatives drawn for each pair."})
    score_mask_margin: float | None = field(
        default=None, metadata={"help": "Lead over the target of false negatives."}
    )
    similarity_chunk_size: int = field(default=64, metadata={"help": "Rows of the similarity matrix at once."})
    max_rationale_tokens: int = field(default=256, metadata={"help": "Longest allowed rationale."})
    freeze_vision_tower: bool = field(default=False, metadata={"help": "Leave the vision tower as it is."})
    augment_pictures: bool = field(default=False, metadata={"help": "Vary every training picture a little."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep columns for the collator."})

    _argument_group_name: ClassVar[str] = "settings"
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*_BaseConfig._VALID_DICT_FIELDS, "task_weights"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} has to be positive.")
        if self.sub_batch_size < 1 or self.per_device_train_batch_size % self.sub_batch_size:
            raise ValueError(
                f"sub_batch_size={self.sub_batch_size} has to divide per_device_train_batch_size="
                f"{self.per_device_train_batch_size}."
            )
        least = {
            "max_reasoning_rounds": 1,
            "num_length_chunks": 1,
            "similarity_chunk_size": 1,
            "max_rationale_tokens": 1,
            "mini_batch_size": 1,
            "num_hard_negatives": 0,
        }
        for name, value in least.items():
            if getattr(self, name) is not None and getattr(self, name) < value:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: whole numbers from {value} on.")
        for name in ("rationale_weight", "gate_weight", *_PATH_WEIGHTS.values()):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more.")
        if not any(self.path_weights.values()):
            raise ValueError(f"Nothing would be embedded: {', '.join(_PATH_WEIGHTS.values())} are all 0.")

    @property
    def path_weights(self) -> PathWeights:
        """Weight per (query path, target path); 0 is direct, 1 after the first rationale, 2 after the second, ..."""
        paths = range(self.max_reasoning_rounds + 1)
        return {(a, b): getattr(self, _PATH_WEIGHTS[min(a, 1), min(b, 1)]) for a in paths for b in paths}


_PATH_WEIGHTS = {
    (0, 0): "direct_direct_weight",
    (1, 0): "reasoned_direct_weight",
    (0, 1): "direct_reasoned_weight",
    (1, 1): "reasoned_reasoned_weight",
}
