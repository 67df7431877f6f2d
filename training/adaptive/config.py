"""Configure the adaptive phase."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import ClassVar, cast

from trl import GRPOConfig

from mmemb_r1.training.adaptive.rewards import TARGET_REWARDS, find_reward
from mmemb_r1.training.base_config import CheckedConfig
from mmemb_r1.training.base_trainer import with_help
from mmemb_r1.training.settling.faults import DEFAULT_MAX_SKIPPED, SettleOptions

SCORERS = ("frozen", "live")
DECISIONS = ("stratified", "sampled")
DECISION_REWARDS = ("reward", "utility")
SIDES = ("query", "target", "both")
# What TRL's options of vLLM may be: the others ask for several processes, for a GPU, or bend what is drawn.
VLLM_CHOICES: dict[str, tuple[object, ...]] = {
    "vllm_mode": ("colocate",),
    "vllm_tensor_parallel_size": (1,),
    "vllm_enable_sleep_mode": (False,),
    "vllm_model_impl": ("vllm",),
    "vllm_structured_outputs_regex": (None,),
}


@with_help
@dataclass
class AdaptiveGRPOConfig(CheckedConfig, GRPOConfig):
    """
    Configuration of [`AdaptiveGRPOTrainer`]: those of [`~trl.GRPOConfig`] and the following.

    `per_device_train_batch_size` counts rollouts. A group is `num_generations` rollouts of one query:
    `num_direct_rollouts` direct embeddings, and the others reason. `temperature` divides the logits of the gate as
    well as those of tokens. `max_completion_length` follows from the budget. With `use_vllm`, vLLM writes the
    rationales, in this process.

    Args:
        num_generations: Rollouts of a group.
        num_direct_rollouts: How many of them embed directly. One is enough: it is the same every time. Sampled
            decisions have no such number.
        decisions: Who decides which rollouts reason: `"stratified"` groups hold both kinds, and advantages make up for
            it; `"sampled"` ones are drawn from the gate, and rewards normalised by group, as plain GRPO does.
        sides: Which inputs learn to reason: the `"query"` of each pair, its `"target"`, for which the pair's query is
            looked for, or `"both"`.
        max_reasoning_tokens: Budget of one rationale. `None` takes the model's.
        max_reasoning_rounds: Rationales of a rollout at most; later ones are drawn from the gate. `None`: the model's.
        format_weight: Weight of the reward for being well-formed.
        target_reward: What is rewarded of the target: its `"probability"` among negatives, its `"cosine"` similarity,
            or the `"margin"` of that above the nearest negative.
        target_probability_weight: Weight of the reward for the target, whichever it is.
        cost_weight: Weight of the cost of rationales: by so much has a whole budget to raise the target's probability.
        rewards: Further rewards (names of `REWARDS` or import paths `module:function`) -> weights, in a flag as JSON.
        target_probability_temperature: Divides cosine similarities where the target's probability is measured.
        num_candidates: Negatives of a query that the target competes with in the reward, drawn by the seed from the
            targets of its task, beside its own hard negatives: the reward does not depend on the table's size. `None`
            takes all.
        decision_reward: What decides whether reasoning pays: the `"reward"` of each rollout, or the group's net
            `"utility"`, clipped; rewards then train the rationales only.
        utility_clip: Largest reward by utility.
        utility_tolerance: A utility below this counts as one for the direct embedding.
        decision_weight: Weight of the loss on decisions, a mean over rollouts.
        rationale_weight: Weight of the loss on rationale tokens, a mean over these tokens.
        contrastive_weight: Weight of the contrastive term on live embeddings, direct and last, and scored targets.
        direct_anchor: Least cosine that is allowed between a direct embedding and what it was when training began:
            0.999, say. What leaves half of that distance is penalised, and nothing else trains direct embeddings; at
            the end they are measured on the evaluation pairs, and a model that moved farther is an error. Needs
            adapters. `None`: they may move.
        direct_anchor_weight: Weight of that penalty.
        direct_anchor_exact: Whether, in place of that error, what training changed of the weights is scaled down until
            the bound is kept.
        min_decision_prob: Least probability that a decision is weighted with, so that a collapsed gate can recover.
        gate_learning_rate: Learning rate of the gate, for standardised states (see [`StandardisedGate`]).
        scorer: Which model measures the target's probability: the first one, `"frozen"`, or the present one, `"live"`.
        refresh_steps: Generations after which a `"live"` scorer embeds the candidates again.
        on_error: What becomes of rows that are broken or too long, found before the first step: `"raise"` refuses
            a run, `"skip"` leaves out such pairs. All are listed in `skipped.jsonl`.
        max_skipped: Largest share of a table's pairs that may be left out.
        max_input_tokens: Most tokens of an input (template, text, media) and what is drawn after it. `None`: what the
            model can read.
        max_image_tokens: Tokens of one picture: larger ones are made smaller. It is saved in the model's config.
            `None`: what that says.
        stop_on_collapse: Logs in a row with an invocation rate below 0.01 or above 0.99 that end training.
    """

    num_generations: int | None = 4
    num_direct_rollouts: int = 1
    decisions: str = "stratified"
    sides: str = "query"
    max_reasoning_tokens: int | None = None
    max_reasoning_rounds: int | None = None
    format_weight: float = 0.1
    target_reward: str = "probability"
    target_probability_weight: float = 1.0
    cost_weight: float = 0.05
    rewards: dict | str | None = None
    target_probability_temperature: float = 0.02
    num_candidates: int | None = 512
    decision_reward: str = "reward"
    utility_clip: float = 0.5
    utility_tolerance: float = 0.01
    decision_weight: float = 1.0
    rationale_weight: float = 1.0
    contrastive_weight: float = 0.1
    direct_anchor: float | None = None
    direct_anchor_weight: float = 1.0
    direct_anchor_exact: bool = False
    min_decision_prob: float = 0.02
    gate_learning_rate: float = 1e-3
    scorer: str = "frozen"
    refresh_steps: int = 16
    on_error: str = "raise"
    max_skipped: float = DEFAULT_MAX_SKIPPED
    max_input_tokens: int | None = None
    max_image_tokens: int | None = None
    stop_on_collapse: int | None = None
    scale_rewards: str = field(
        default="none", metadata={"help": "Has to be none: dividing by a deviation hides the gap."}
    )

    _argument_group_name: ClassVar[str] = "settings"
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "rewards"]
    renamed_fields: ClassVar[dict[str, str]] = {
        "alignment_weight": "target_probability_weight",
        "alignment_temperature": "target_probability_temperature",
    }

    def __post_init__(self) -> None:
        direct, size = self.num_direct_rollouts, self.num_generations
        if not 1 <= direct <= (size or 0) - 2:
            raise ValueError(
                f"num_generations={size} with num_direct_rollouts={direct}: a group needs at least one direct rollout "
                "and two that think, to tell good rationales from bad ones; raise num_generations."
            )
        self._check_choices()
        super().__post_init__()
        _ = self.settle_options  # checks them
        self._check_rewards()
        window = self.steps_per_generation * self.num_iterations
        if self.per_device_train_batch_size * self.steps_per_generation % size:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} times steps_per_generation="
                f"{self.steps_per_generation} has to be a multiple of num_generations={size}: a group must not be "
                "spread over processes."
            )
        if window % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation={self.steps_per_generation} times num_iterations={self.num_iterations} has to "
                f"be a multiple of gradient_accumulation_steps={self.gradient_accumulation_steps}: rollouts are drawn "
                "between optimiser steps."
            )
        steps = window // self.gradient_accumulation_steps  # optimiser steps on the same rollouts
        if steps > 1 and str(self.save_strategy) in ("steps", "SaveStrategy.STEPS") and self.save_steps % steps:
            raise ValueError(
                f"save_steps={self.save_steps} has to be a multiple of the {steps} steps that are taken on the same "
                "rollouts: a checkpoint does not hold these, and a run that goes on from between would differ."
            )

    @property
    def all_rewards(self) -> dict[str, float]:
        """Name or import path of every reward -> its weight, first of those that are always used."""
        always = {
            "format": self.format_weight,
            self.target_reward_name: self.target_probability_weight,
            "cost": self.cost_weight,
        }
        return always | cast(dict[str, float], self.rewards or {})

    @property
    def target_reward_name(self) -> str:
        """Name of the reward for the target in `REWARDS`, and of what it rewards among a rollout's fields."""
        return f"target_{self.target_reward}"

    @property
    def settle_options(self) -> SettleOptions:
        """What is too long, and what becomes of it."""
        return SettleOptions(self.on_error, self.max_skipped, self.max_input_tokens)

    def for_trl(self, max_completion_length: int, num_reward_funcs: int) -> AdaptiveGRPOConfig:
        """Copy the config with what TRL has to be told; `num_reward_funcs` rewards are given beside the named ones."""
        told = copy.copy(self)
        told.router_aux_loss_coef = 0.0  # TRL takes the architecture's otherwise, from outputs that have none
        told.max_completion_length = max_completion_length
        told.reward_weights = [*self.all_rewards.values(), *(self.reward_weights or [1.0] * num_reward_funcs)]
        told.use_vllm = False  # TRL would start it with the whole model's folder: the trainer starts it itself
        told.beta = 0.0  # TRL would load the reference from the Hub by the model's name
        return told

    def _check_rewards(self) -> None:
        if not isinstance(self.rewards, dict | None):
            raise ValueError(f"rewards={self.rewards!r}; allowed: a mapping of names or import paths to weights.")
        for name, weight in (self.rewards or {}).items():
            if name in ("format", self.target_reward_name, "cost"):
                own = f"{name}_weight" if name in ("format", "cost") else "target_probability_weight"
                raise ValueError(f"rewards: {name!r} is used already; set its weight with {own}.")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"rewards: the weight of {name!r} is {weight!r}; allowed: a finite number.")
            find_reward(name)

    def _check_server(self) -> None:
        if self.vllm_mode == "server":
            raise ValueError(
                "vllm_mode='server'; allowed: 'colocate'. TRL sends a server the trained weights over NCCL alone "
                "(VLLMClient.init_communicator), which asks for a GPU on both sides, and gives all rollouts of a step "
                "the same options, where here each has a seed of its own. Leave vllm_mode out: vLLM then runs in the "
                "process that trains."
            )

    def _check_choices(self) -> None:
        # options of TRL's that would have no effect here, or would bend the decision's gradient, have one value
        allowed: dict[str, tuple[object, ...]] = {
            "scorer": SCORERS,
            "decision_reward": DECISION_REWARDS,
            "decisions": DECISIONS,
            "sides": SIDES,
            "target_reward": TARGET_REWARDS,
            "loss_type": ("dapo",),
            "scale_rewards": ("none", False),
            "importance_sampling_level": ("token",),
            "multi_objective_aggregation": ("sum_then_normalize",),
            "top_entropy_quantile": (1.0,),
            "entropy_coef": (0.0,),
            "use_adaptive_entropy": (False,),
            "mask_truncated_completions": (False,),
            "top_p": (1.0,),
            "top_k": (0, None),
            "min_p": (None,),
            "repetition_penalty": (1.0,),
            "generation_kwargs": (None,),
            "cast_lm_head_to_fp32": (False,),
            "sync_ref_model": (False,),
            "router_aux_loss_coef": (None, 0.0),
        }
        if self.use_vllm:
            self._check_server()
            allowed |= VLLM_CHOICES
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(repr, values))}.")
        if self.decisions == "sampled" and self.decision_reward == "utility":
            raise ValueError(
                "decision_reward='utility' compares both kinds of rollouts in a group, and sampled decisions may "
                "leave one out; use decisions='stratified', or decision_reward='reward'."
            )
        for name in ("target_probability_temperature", "gate_learning_rate", "refresh_steps", "utility_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be positive.")
        for name in ("format_weight", "cost_weight", "decision_weight", "rationale_weight", "contrastive_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more.")
        if self.num_candidates is not None and self.num_candidates < 1:
            raise ValueError(f"num_candidates={self.num_candidates}; allowed: 1 or more, or none for all.")
        if not 0 <= self.min_decision_prob < 0.5:
            raise ValueError(f"min_decision_prob={self.min_decision_prob}; allowed: 0 up to, not including, 0.5.")


def check_eval_groups(config: AdaptiveGRPOConfig) -> None:
    """Check that groups of an evaluation hold both kinds of rollouts, and are not spread over processes."""
    size, batch = config.num_generations_eval or config.num_generations or 0, config.per_device_eval_batch_size
    if size <= config.num_direct_rollouts:
        raise ValueError(
            f"num_generations_eval={size} with num_direct_rollouts={config.num_direct_rollouts}: a group needs a "
            "rollout that thinks; raise num_generations_eval."
        )
    if batch % size:
        raise ValueError(
            f"per_device_eval_batch_size={batch} has to be a multiple of the {size} rollouts of a group: a group must "
            "not be spread over processes."
        )
