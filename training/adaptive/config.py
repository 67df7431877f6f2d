"""Configure the adaptive phase."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, cast

from trl import GRPOConfig

from mmemb_r1.training.adaptive.rewards import ALWAYS_USED, find_reward
from mmemb_r1.training.base_trainer import TokensLeftOut

SCORERS = ("frozen", "live")
DECISION_REWARDS = ("reward", "utility")


@dataclass
class AdaptiveGRPOConfig(TokensLeftOut, GRPOConfig):
    """
    Configuration of [`AdaptiveGRPOTrainer`]: those of [`~trl.GRPOConfig`] and the following.

    `per_device_train_batch_size` counts rollouts. A group is `num_generations` rollouts of one query:
    `num_direct_rollouts` direct embeddings, and the others reason. `temperature` divides the logits of the gate as
    well as those of tokens. `max_completion_length` follows from the budget.

    Args:
        num_generations (`int`, *optional*, defaults to `4`):
            Rollouts of a group.
        num_direct_rollouts (`int`, *optional*, defaults to `1`):
            How many of them embed directly. One is enough: it is the same every time.
        max_reasoning_tokens (`int`, *optional*):
            Budget of one rationale. `None` takes the model's.
        max_reasoning_rounds (`int`, *optional*):
            Rationales of a rollout at most. `None` takes the model's. The first decision of a group is stratified,
            later ones are drawn from the gate.
        format_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the reward for being well-formed.
        target_probability_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the reward for the target's probability.
        cost_weight (`float`, *optional*, defaults to `0.05`):
            Weight of the cost of rationales: by so much has a whole budget to raise the target's probability.
        rewards (`dict[str, float]`, *optional*):
            Further rewards and their weights, by name (see `REWARDS`) or, for your own, by import path
            `module:function`.
        target_probability_temperature (`float`, *optional*, defaults to `0.02`):
            Divides cosine similarities where the target's probability is measured.
        decision_reward (`str`, *optional*, defaults to `"reward"`):
            What decides whether reasoning pays: the `"reward"` of each rollout, or the sign of the net `"utility"` of
            the group, clipped; rewards then train the rationales only.
        utility_clip (`float`, *optional*, defaults to `0.5`):
            Largest reward by utility.
        utility_tolerance (`float`, *optional*, defaults to `0.01`):
            A utility below this counts as one for the direct embedding.
        decision_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the loss on decisions, a mean over rollouts.
        rationale_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the loss on rationale tokens, a mean over these tokens.
        contrastive_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the contrastive term on the live direct and last embeddings, against targets as the scorer embeds
            them.
        min_decision_prob (`float`, *optional*, defaults to `0.02`):
            Least probability that a decision is weighted with, so that a collapsed gate can recover.
        gate_learning_rate (`float`, *optional*, defaults to `0.001`):
            Learning rate of the gate, for hidden states that are standardised (see [`StandardisedGate`]);
            `learning_rate` is that of everything else.
        scorer (`str`, *optional*, defaults to `"frozen"`):
            Which model measures the target's probability: a `"frozen"` copy of the first one, or the `"live"` one.
        refresh_steps (`int`, *optional*, defaults to `16`):
            Generations after which a `"live"` scorer embeds the candidates again.
        stop_on_collapse (`int`, *optional*):
            Logs in a row with an invocation rate below 1 % or above 99 % after which training stops. `None` never
            stops it.
    """

    num_generations: int | None = field(default=4, metadata={"help": "Rollouts of a group."})
    num_direct_rollouts: int = field(default=1, metadata={"help": "Direct rollouts of a group."})
    max_reasoning_tokens: int | None = field(default=None, metadata={"help": "Budget of one rationale."})
    max_reasoning_rounds: int | None = field(default=None, metadata={"help": "Rationales of a rollout at most."})
    format_weight: float = field(default=0.1, metadata={"help": "Weight of being well-formed."})
    target_probability_weight: float = field(default=1.0, metadata={"help": "Weight of the target's probability."})
    cost_weight: float = field(default=0.05, metadata={"help": "Weight of the cost of rationales."})
    rewards: dict | str | None = field(default=None, metadata={"help": "JSON: further rewards and their weights."})
    target_probability_temperature: float = field(default=0.02, metadata={"help": "Divides cosine similarities."})
    decision_reward: str = field(
        default="reward", metadata={"help": "What decides whether reasoning pays: reward or utility."}
    )
    utility_clip: float = field(default=0.5, metadata={"help": "Largest reward by utility."})
    utility_tolerance: float = field(default=0.01, metadata={"help": "A smaller utility counts as none."})
    decision_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on decisions."})
    rationale_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on rationale tokens."})
    contrastive_weight: float = field(default=0.1, metadata={"help": "Weight of the contrastive term."})
    min_decision_prob: float = field(default=0.02, metadata={"help": "Floor of a decision's weight."})
    gate_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the gate."})
    scorer: str = field(default="frozen", metadata={"help": "Which model measures: frozen or live."})
    refresh_steps: int = field(default=16, metadata={"help": "Generations after which a live scorer embeds again."})
    stop_on_collapse: int | None = field(default=None, metadata={"help": "Logs of a collapsed gate before a stop."})
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
        self._check_rewards()
        local = self.per_device_train_batch_size * self.steps_per_generation
        if local % size:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} times steps_per_generation="
                f"{self.steps_per_generation} has to be a multiple of num_generations={size}: a group must not be "
                "spread over processes."
            )
        window = self.steps_per_generation * self.num_iterations
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
        always = {name: getattr(self, f"{name}_weight") for name in ALWAYS_USED}
        return always | cast(dict[str, float], self.rewards or {})

    def _check_rewards(self) -> None:
        if not isinstance(self.rewards, dict | None):
            raise ValueError(f"rewards={self.rewards!r}; allowed: a mapping of names or import paths to weights.")
        for name, weight in (self.rewards or {}).items():
            if name in ALWAYS_USED:
                raise ValueError(f"rewards: {name!r} is always used; set its weight with {name}_weight.")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"rewards: the weight of {name!r} is {weight!r}; allowed: a finite number.")
            find_reward(name)

    def _check_choices(self) -> None:
        if self.use_vllm:
            raise ValueError(
                "use_vllm=True can't draw rollouts here: vLLM loads the backbone alone, without gate and embedding "
                "head, and gives back no embeddings. Set use_vllm=False. To draw rationales with vLLM, use "
                "`mmemb-r1 rationales` with its server as a worker."
            )
        # options of TRL's that would have no effect here, or would bend the decision's gradient, have one value
        allowed: dict[str, tuple[object, ...]] = {
            "scorer": SCORERS,
            "decision_reward": DECISION_REWARDS,
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
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(repr, values))}.")
        for name in ("target_probability_temperature", "gate_learning_rate", "refresh_steps", "utility_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be positive.")
        for name in ("format_weight", "cost_weight", "decision_weight", "rationale_weight", "contrastive_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more.")
        if not 0 <= self.min_decision_prob < 0.5:
            raise ValueError(f"min_decision_prob={self.min_decision_prob}; allowed: 0 up to, not including, 0.5.")
