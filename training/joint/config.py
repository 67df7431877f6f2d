"""Configure the joint phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from trl.trainer.base_config import _BaseConfig

from mmemb_r1.training.base_config import CheckedConfig
from mmemb_r1.training.base_trainer import with_help
from mmemb_r1.training.joint.losses import PathWeights
from mmemb_r1.training.settling.faults import DEFAULT_MAX_SKIPPED, SettleOptions


@with_help
@dataclass
class JointConfig(CheckedConfig, _BaseConfig):
    """
    Configuration of [`JointTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    `per_device_train_batch_size` counts pairs. The targets of all processes, and their hard negatives, are the
    candidates of every query.

    Args:
        temperature: Divides the cosine similarities.
        direct_direct_weight: Weight of the term direct query against direct target.
        reasoned_direct_weight: Weight of reasoned query against direct target: search over a direct index.
        direct_reasoned_weight: Weight of the term direct query against reasoned target.
        reasoned_reasoned_weight: Weight of the term reasoned query against reasoned target.
        symmetric_loss: Whether targets also look for their queries among those of the batch. `False`: InfoNCE in one
            direction, from queries to targets.
        one_sided_reasoning: Whether a pair with a rationale on one side only is an anchor of the term reasoned against
            reasoned; the direct vector stands for the side without one.
        rationale_weight: Weight of the language-model loss on the rationale tokens.
        best_rationale_only: Whether each pair always trains on its selected rationale of the highest posterior, in
            place of one that is drawn from the posterior each time.
        weight_by_posterior: Whether that loss weighs each rationale by its posterior, though it is drawn from it
            already.
        gate_weight: Weight of the gate's warm start, on whether thinking pays within the batch; only for pairs that
            the embedder is not fitted to. At 0 the gate is left as it is.
        gate_cost: What a rationale has to gain to pay, as probability of the target within the batch.
        direct_anchor: Least cosine that is allowed between a direct embedding and what it was when training began:
            0.999, say. What leaves half of that distance is penalised, and nothing else trains direct embeddings; at
            the end they are measured on the evaluation pairs, and a model that moved farther is an error. Needs
            adapters. `None`: they may move.
        direct_anchor_weight: Weight of that penalty.
        direct_anchor_exact: Whether, in place of that error, what training changed of the weights is scaled down until
            the bound is kept.
        use_rationales: Whether rationales are trained on; `False` trains the direct path alone.
        max_reasoning_rounds: Segments of a rationale that are trained as rounds of their own; the rest joins the last.
        matryoshka_dims: Dimensions at which the contrastive terms are taken as well, with the same weight.
        sub_batch_size: Pairs of one task that stand together in a batch, as each other's negatives.
        task_weights: Task -> how often it is drawn, in a flag as JSON; others are not. `None`: by number of pairs.
        task_size_exponent: Without task_weights, tasks are drawn by their number of pairs to this power. At 1 an epoch
            has every pair once; below, pairs of small tasks come more often than others.
        separate_equal_pairs: Whether pairs with equal queries or equal targets are kept out of one batch, as far as
            other pairs of their task can take their places. Every input is looked at for it before the first step.
        mini_batch_size: Inputs that are run at once, at the price of a forward pass (gradient caching). `None`: all.
        mini_batch_tokens: Tokens that are run at once, padding included, likewise; an input with more is run alone.
            Inputs of like length stand together. With mini_batch_size, whatever is less. `None`: any number.
        num_length_chunks: Without gradient caching: forward passes of each side, which is split by length.
        num_hard_negatives: Hard negatives of each pair, drawn anew from its `negatives`, for the whole batch.
        score_mask_margin: A negative with a direct cosine similarity above the target's by more than this counts as
            false and is left out. `None`, the default, is right from scratch; 0.1 for pretrained backbones.
        similarity_chunk_size: Rows of the similarity matrix that are held in memory at once.
        max_rationale_tokens: Longer rationales are not cut, for a cut rationale teaches to stop in the middle: see
            `on_error`.
        freeze_vision_tower: Whether the vision tower stays as it is.
        augment_pictures: Whether training pictures are shifted, turned and recoloured a little, anew each time.
        eval_retrieval: Modes (never, always, auto) in which the queries of the evaluation pairs also search for their
            targets in each evaluation; `metric_for_best_model` may be `auto_hit@1`. `None`: in none.
        dataloader_persistent_workers: Whether data workers are kept from one epoch to the next.
        on_error: What becomes of rows that are broken or too long, found before the first step: `"raise"` refuses
            a run, `"skip"` leaves out such pairs, and rationales that are too long, whose pairs stay. All are listed
            in `skipped.jsonl`.
        max_skipped: Largest share of a table's pairs that may be left out.
        max_input_tokens: Most tokens of an input (template, text, media) and a rationale after it. `None`: what the
            model can read.
        max_image_tokens: Tokens of one picture: larger ones are made smaller. It is saved in the model's config.
            `None`: what that says.
    """

    temperature: float = 0.02
    direct_direct_weight: float = 1.0
    reasoned_direct_weight: float = 1.0
    direct_reasoned_weight: float = 0.5
    reasoned_reasoned_weight: float = 0.5
    symmetric_loss: bool = True
    one_sided_reasoning: bool = False
    rationale_weight: float = 1.0
    best_rationale_only: bool = False
    weight_by_posterior: bool = False
    gate_weight: float = 0.0
    gate_cost: float = 0.02
    direct_anchor: float | None = None
    direct_anchor_weight: float = 1.0
    direct_anchor_exact: bool = False
    use_rationales: bool = True
    max_reasoning_rounds: int = 1
    matryoshka_dims: list[int] | None = None
    sub_batch_size: int = 8
    task_weights: dict | str | None = None
    task_size_exponent: float = 1.0
    separate_equal_pairs: bool = False
    mini_batch_size: int | None = None
    mini_batch_tokens: int | None = None
    num_length_chunks: int = 2
    num_hard_negatives: int = 0
    score_mask_margin: float | None = None
    similarity_chunk_size: int = 64
    max_rationale_tokens: int = 256
    freeze_vision_tower: bool = False
    augment_pictures: bool = False
    eval_retrieval: list[str] | None = None
    dataloader_persistent_workers: bool = True
    on_error: str = "raise"
    max_skipped: float = DEFAULT_MAX_SKIPPED
    max_input_tokens: int | None = None
    max_image_tokens: int | None = None
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
        # options of the Trainer's that would have no effect here have one value
        fixed = {
            "auto_find_batch_size": False,
            "dataloader_drop_last": False,
            "label_smoothing_factor": 0.0,
            "train_sampling_strategy": "random",
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect in this phase; leave it out.")
        sizes = ("max_reasoning_rounds", "num_length_chunks", "similarity_chunk_size", "max_rationale_tokens")
        for name in (*sizes, "mini_batch_size", "mini_batch_tokens", "num_hard_negatives"):
            value, least = getattr(self, name), int(name != "num_hard_negatives")
            if value is not None and value < least:
                raise ValueError(f"{name}={value}; allowed: whole numbers from {least} on.")
        self._check_mixing()
        for name in ("rationale_weight", "gate_weight", "task_size_exponent", *_PATH_WEIGHTS.values()):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more.")
        if not any(self.path_weights.values()):
            raise ValueError(f"Nothing would be embedded: {', '.join(_PATH_WEIGHTS.values())} are all 0.")

        if self.direct_anchor is not None and not self.use_rationales:
            raise ValueError(
                f"direct_anchor={self.direct_anchor} holds direct embeddings where they are, and use_rationales=False "
                "trains nothing else; leave out one of them."
            )
        _ = self.settle_options  # checks them

    @property
    def settle_options(self) -> SettleOptions:
        """What is too long, and what becomes of it."""
        limits = (self.max_input_tokens, self.max_rationale_tokens if self.use_rationales else None)
        return SettleOptions(self.on_error, self.max_skipped, *limits)

    def _check_mixing(self) -> None:
        """Refuse options of the order of pairs that do not go together."""
        if self.task_weights is not None and self.task_size_exponent != 1:
            raise ValueError(
                f"task_weights and task_size_exponent={self.task_size_exponent} both say how often tasks are drawn; "
                "leave one out."
            )
        if self.separate_equal_pairs and (self.task_weights is not None or self.task_size_exponent != 1):
            raise ValueError(
                "separate_equal_pairs exchanges pairs within an epoch that has every pair once; leave it out where "
                "tasks are drawn by task_weights or task_size_exponent."
            )

    @property
    def caches_gradients(self) -> bool:
        """Whether inputs are run a few at a time, with gradient caching."""
        return self.mini_batch_size is not None or self.mini_batch_tokens is not None

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
