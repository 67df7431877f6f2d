"""Teach a model when to think, with GRPO."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import ProcessorMixin, TrainerCallback
from trl import GRPOTrainer

from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.training.adaptive.advantages import (
    decision_advantages,
    leave_one_out,
    strata,
    token_advantages,
    utility_rewards,
)
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.adaptive.forward import PolicyForward, padded_left
from mmemb_r1.training.adaptive.frozen import FirstModel
from mmemb_r1.training.adaptive.prompts import check_rendering, policy_prompts, prompt_states, warn_of_overlap
from mmemb_r1.training.adaptive.rewards import ALWAYS_USED, RewardFunction, find_reward
from mmemb_r1.training.adaptive.rollouts import as_columns, in_groups, read_group, roll_out
from mmemb_r1.training.adaptive.settled import settle_adaptive
from mmemb_r1.training.base_trainer import EpochSampler, PhaseTrainer
from mmemb_r1.training.distributed import num_processes, process_index, summed, unwrapped
from mmemb_r1.training.gate import StandardisedGate, StopOnCollapse
from mmemb_r1.training.tables import PAIR_COLUMNS, check_pairs
from mmemb_r1.training.targets import TargetScorer
from mmemb_r1.training.vlm import weights_fingerprint

CANDIDATES_FOLDER = "candidates"  # in the folder of the checkpoints: vectors of candidates
LEAST_SPREAD = 1e-4  # of rewards within a group, to learn from


def rollout_metrics(
    fields: Mapping[str, Tensor], rewards: Tensor, reasoned: Tensor, gap: Tensor, probs: Tensor, threshold: float
) -> dict[str, Tensor]:
    """
    Compute numbers that show how training goes, and whether the gate or the rationales degenerate.

    Args:
        fields: `(N * G,)` of the rollouts: `num_reasoning_tokens`, `num_reasoning_rounds`, `truncated`.
        rewards, reasoned: `(N, G)`, the latter bool.
        gap: `(N,)` mean target probability after reasoning minus before.
        probs: `(N,)` the gate's probability of reasoning; `threshold` is the gate's.

    Returns:
        `gate/prob`, `gate/thinks` (share of queries) and `gate/right` (how often that is the sign of the gap);
        `utility_gap`; `rationale/tokens`, `rationale/rounds`, `rationale/truncated` of reasoned rollouts;
        `rationale/groups_without_spread`, the share of groups whose rationales all got the same reward.
    """
    rows, thinks = reasoned.flatten(), probs >= threshold
    within = torch.stack(
        [row[chosen].max() - row[chosen].min() for row, chosen in zip(rewards, reasoned, strict=True)]
    )
    return {
        "gate/prob": probs.mean(),
        "gate/thinks": thinks.float().mean(),
        "gate/right": (thinks == (gap > 0)).float().mean(),
        "utility_gap": gap.mean(),
        "rationale/tokens": fields["num_reasoning_tokens"][rows].mean(),
        "rationale/rounds": fields["num_reasoning_rounds"][rows].mean(),
        "rationale/truncated": fields["truncated"][rows].mean(),
        "rationale/groups_without_spread": (within < LEAST_SPREAD).float().mean(),
    }


def adaptive_facts(model: MMEmbR1Model, args: AdaptiveGRPOConfig, pairs: Dataset) -> dict[str, Any]:
    """Record what an adaptive phase was run with, name -> value, for the model card."""
    return {
        "phase": "adaptive (GRPO)",
        "started from weights": weights_fingerprint(model),
        "pairs": len(pairs),
        "rollouts per query": f"{args.num_generations}, of them direct {args.num_direct_rollouts}",
        "reward weights": ", ".join(f"{name} {weight:g}" for name, weight in args.all_rewards.items()),
        "rollouts per step": args.generation_batch_size,
        "learning rate": f"{args.learning_rate:g}, of the gate {args.gate_learning_rate:g}",
        "seed": args.seed,
    }


def _without_adapters(model: Any) -> MMEmbR1Model:
    """Take a model out of peft's wrapper; its layers keep their adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


class AdaptiveGRPOTrainer(PhaseTrainer, GRPOTrainer):
    """
    Teach a model that reasons well when to reason at all.

    A rollout is a direct embedding, or a rationale and the embedding after it. Groups share one prefill and hold both
    kinds; for the advantage of each token see [`decision_advantages`] and [`leave_one_out`].

    Args:
        model, processing_class: a model after the joint phase, possibly with adapters, and the processor beside it.
        train_dataset: a pairs table with `pair_id`, `query`, `target`, and optionally `task` and `negatives`. The
            pairs should be new to the joint phase: on those it knows by heart reasoning never pays.
        joint_pairs: what the joint phase was trained on. Its targets are negatives too, task by task, and it warns of
            pairs that are in both tables.
        reward_funcs: further rewards in TRL's form, beside those that `args.rewards` names; `args.reward_weights` are
            their weights.

    Raises:
        ValueError: if a table or the processor is not what it has to be; while training, if a reward is not finite.
    """

    _tag_names = ["mmemb-r1", "grpo"]
    _name = "Adaptive GRPO"
    args: AdaptiveGRPOConfig

    def __init__(
        self,
        model: MMEmbR1Model,
        args: AdaptiveGRPOConfig,
        train_dataset: Dataset,
        processing_class: ProcessorMixin,
        joint_pairs: Dataset | None = None,
        reward_funcs: Sequence[RewardFunction] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        config = model.config
        check_pairs(train_dataset, PAIR_COLUMNS)
        self.settlement = settle_adaptive(args, config, processing_class, train_dataset, joint_pairs)
        train_dataset, *others = self.settlement.tables
        joint_pairs = next(iter(others), None)
        prompts = policy_prompts(train_dataset, processing_class, config.max_text_tokens)
        check_rendering(prompts, processing_class, config.embed_token_id)
        temperature, number = args.target_probability_temperature, args.num_candidates
        self._scorer = TargetScorer(train_dataset, joint_pairs, temperature, number, args.seed)
        warn_of_overlap(train_dataset, joint_pairs)
        self.facts = adaptive_facts(model, args, train_dataset)
        self.max_rounds = args.max_reasoning_rounds or config.max_reasoning_rounds
        self.max_tokens = args.max_reasoning_tokens or config.max_reasoning_tokens
        args = copy.copy(args)
        args.router_aux_loss_coef = 0.0  # TRL takes the architecture's otherwise, from outputs that have none
        args.max_completion_length = self.max_rounds * (self.max_tokens + 3) + 1
        args.reward_weights = [*args.all_rewards.values(), *(args.reward_weights or [1.0] * len(reward_funcs))]
        beta, args.beta = args.beta, 0.0  # TRL would load the reference from the Hub by the model's name
        is_needed = beta or args.scorer == "frozen" or hasattr(model, "peft_config")
        self._frozen = FirstModel(model) if is_needed else None
        if args.scorer == "frozen" and process_index() == 0:
            module = MMEmbR1Module(_without_adapters(model), processing_class)
            self._scorer.keep_in(Path(args.output_dir) / CANDIDATES_FOLDER, checkpoint_fingerprint(module))
        self._rows = torch.empty(0, dtype=torch.long)
        self._gate_logits = torch.empty(0)
        stops = [StopOnCollapse(args.stop_on_collapse)] if args.stop_on_collapse else []
        super().__init__(
            model=model,
            reward_funcs=[*map(find_reward, args.all_rewards), *reward_funcs],
            args=args,
            train_dataset=prompts,
            processing_class=processing_class,
            callbacks=[*(callbacks or []), *stops],
            optimizers=optimizers,
            rollout_func=lambda prompts, _: self._roll_out(prompts),
        )
        self._refuse_sharding()
        if num_processes() > 1:  # TRL gathers pictures only in processes that have some, and waits for ever
            self.log_multimodal = False
        self._gate_inputs = prompt_states(self._bare_model, processing_class, prompts)  # on its device by now
        self.args.beta = self.beta = beta
        if self._frozen is not None:
            self._frozen.restore_dtype()
            self._frozen.to(self.accelerator.device)
            self.ref_model = self._frozen if beta else None

    def _refuse_sharding(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "The adaptive phase draws rollouts from the whole model, and does not run on a sharded one: use "
                "accelerate launch --multi_gpu, with adapters (lora) where memory is short."
            )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        """Sample as TRL, but by the number of the epoch: a run that was killed goes on with the right order."""
        size = self.num_generations
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=size,
            batch_size=self.args.generation_batch_size // size,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Do as TRL, with an advantage of each token instead of each rollout."""
        self._rows = torch.tensor([row["row"] for row in inputs])
        self._embed_candidates()
        with padded_left(self._tokenizer):
            output = super()._generate_and_score_completions(inputs)
        output["advantages"] = self._token_advantages(output)
        output["rows"] = self._rows.to(output["advantages"].device)
        return output

    def _embed_candidates(self) -> None:
        """Embed the candidates of the rows at hand that are not embedded yet, or all when a live scorer is due."""
        steps = self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        if self.args.scorer == "live" and self.state.global_step // steps % self.args.refresh_steps == 0:
            self._scorer.forget()
        with self._scoring_model() as scorer, self.accelerator.autocast():
            self._scorer.embed(scorer, self.processing_class, self._rows)

    @contextmanager
    def _scoring_model(self) -> Iterator[MMEmbR1Model]:
        """Give the model that measures rewards, in eval mode, for the length of a block."""
        if self.args.scorer == "frozen" and self._frozen is not None:
            with self._frozen.run() as model:
                yield model
            return
        model = self._bare_model
        training = model.training
        yield model.eval()
        model.train(training)

    @property
    def _bare_model(self) -> Any:
        return _without_adapters(self.accelerator.unwrap_model(self.model))

    def _roll_out(self, prompts: list[Any]) -> dict[str, Any]:
        """Draw completions of prompts that stand in groups; also which tokens were chosen, and what rewards read."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        model, direct = self._bare_model, self.args.num_direct_rollouts
        conversations = to_conversations(prompts[::size], media=MediaOptions.of(model.config))
        batch = dict(render(self.processing_class, conversations).to(self.accelerator.device))
        training = model.training
        with self.accelerator.autocast():  # in the precision that log-probabilities will be taken in
            group = roll_out(
                model.eval(),
                batch,
                size - direct,
                max_tokens=self.max_tokens,
                max_rounds=self.max_rounds,
                temperature=self.temperature,
            )
            model.train(training)
            found = (group.direct, group.reasoned)
            if self.args.scorer == "frozen":
                with self._scoring_model() as scorer:
                    found = read_group(scorer, batch, group)
        vectors, own = (in_groups(*of, direct) for of in (found, (group.direct, group.reasoned)))
        self._log("similarity_to_scorer", nn.functional.cosine_similarity(vectors, own).mean())
        self._gate_logits = group.gate_logits
        rows_of_ids = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        prompt_ids = [ids[kept].tolist() for ids, kept in rows_of_ids]
        return {
            "prompt_ids": [ids for ids in prompt_ids for _ in range(size)],
            "logprobs": None,
            "target_probability": self._scorer.log_probability(self._rows, vectors).exp().tolist(),
            **as_columns(group, direct, model.config, self._tokenizer.eos_token_id, self.max_tokens, self.max_rounds),
        }

    # Advantages

    def _calculate_rewards(self, inputs: Any, *args: Any) -> Tensor:
        """Compute rewards as TRL does; one that is not finite is an error."""
        rewards = super()._calculate_rewards(inputs, *args)  # (B of all processes, number of rewards)
        start = self.accelerator.process_index * len(inputs)
        if len(bad := (~rewards.isfinite()).nonzero()):
            row, which = bad[0].tolist()
            local = row - start
            whose = f"pair {inputs[local]['pair_id']!r}" if 0 <= local < len(inputs) else "a pair of another process"
            raise ValueError(
                f"after {self.state.global_step} steps the reward {self.reward_func_names[which]!r} is "
                f"{rewards[row, which]} for a rollout of {whose}; it has to return a finite number for each rollout."
            )
        self._rewards = (rewards[start : start + len(inputs)] * self.reward_weights.to(rewards)).sum(dim=1)
        self._fields = {
            name: torch.tensor([float(row[name]) for row in inputs], device=rewards.device)
            for name in ("reasoned", "target_probability", "num_reasoning_tokens", "num_reasoning_rounds", "truncated")
        }
        self._fields["cost"] = rewards[start : start + len(inputs), ALWAYS_USED.index("cost")]
        return rewards

    def _token_advantages(self, output: dict[str, Any]) -> Tensor:
        """Compute the advantages `(B, C)` of the rollouts that were just scored; see [`token_advantages`]."""
        args, size = self.args, self.num_generations if self.model.training else self.num_generations_eval
        rewards, reasoned = self._rewards.view(-1, size), self._fields["reasoned"].view(-1, size).bool()
        probs = (self._gate_logits / self.temperature).sigmoid()  # (N,)
        probabilities = self._fields["target_probability"].view(-1, size)
        gap = strata(probabilities, reasoned)[1].diff(dim=1).squeeze(1)  # (N,)
        for_decision = rewards
        if args.decision_reward == "utility":
            costs = strata(self._fields["cost"].view(-1, size), reasoned)[1][:, 1]
            utility = args.target_probability_weight * gap + args.cost_weight * costs
            for_decision = utility_rewards(utility, reasoned, args.utility_clip, args.utility_tolerance)
        decided = decision_advantages(for_decision, reasoned, probs, args.min_decision_prob).flatten()  # (B,)
        later = leave_one_out(rewards, reasoned).flatten()
        threshold = self._bare_model.config.gate_threshold
        used = self._gate_logits.sigmoid()  # as `encode` takes it
        for name, value in rollout_metrics(self._fields, rewards, reasoned, gap, used, threshold).items():
            self._log(name, value)
        mask = output["completion_mask"] * output["tool_mask"]  # (B, C)
        markers = output["completion_ids"] == self._bare_model.config.embed_token_id
        counts = torch.stack([mask.new_tensor(len(mask)), mask[:, 1:].sum(), mask.sum()]).float()
        return token_advantages(decided, later, markers, summed(counts), args.decision_weight, args.rationale_weight)

    # The loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run a forward and a backward pass over a batch; gradients are the mean over all processes."""
        loss = super().training_step(*args, **kwargs)
        self.average_gradients()
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the gate's log-probabilities for decisions in the same pass as the tokens'."""
        config, temperature = self._bare_model.config, self.temperature
        if model is self._frozen:
            with self._frozen.run() as first:
                policy = PolicyForward(first, config, temperature)
                return super()._get_per_token_logps_and_entropies(policy, *args, **kwargs)
        self._policy = PolicyForward(unwrapped(model), config, temperature)
        return super()._get_per_token_logps_and_entropies(self._policy, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Add a contrastive term on the live embeddings of the same pass to TRL's loss."""
        loss = super()._compute_loss(model, inputs)
        if not self.args.contrastive_weight:
            return loss
        (output,) = self._policy.outputs
        vectors, last = output["embeddings"], output["path_mask"].sum(dim=1) - 1  # (B, K, D), (B,)
        final = vectors[torch.arange(len(last), device=last.device), last]  # (B, D)
        losses = [-self._scorer.log_probability(inputs["rows"], of).mean() for of in (vectors[:, 0], final)]
        term = torch.stack(losses).mean()
        self._log("contrastive", term)
        scale = self.current_gradient_accumulation_steps if self.model.training else 1
        return loss + self.args.contrastive_weight * term / scale

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Put the gate's parameters into a group of their own, in coordinates of their own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        gate = {id(weight) for weight in self._bare_model.gate.parameters()}
        if any(group.get("is_gate") for group in optimizer.param_groups):
            return optimizer
        moved = [weight for group in optimizer.param_groups for weight in group["params"] if id(weight) in gate]
        for group in optimizer.param_groups:
            group["params"] = [weight for weight in group["params"] if id(weight) not in gate]
        optimizer.add_param_group(
            {"params": moved, "lr": self.args.gate_learning_rate, "weight_decay": 0.0, "is_gate": True}
        )
        layer = "output" if self._bare_model.gate.hidden is None else "hidden"  # the one that reads the state
        named = {name: weight for name, weight in self._bare_model.gate.named_parameters() if name.startswith(layer)}
        weight, bias = (
            next(one for name, one in named.items() if name.endswith(kind) and one.requires_grad)
            for kind in ("weight", "bias")
        )
        StandardisedGate(weight, bias, self._gate_inputs).attach(optimizer)
        return optimizer

    # Logs

    def _log(self, name: str, value: Tensor) -> None:
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][name].append(self.accelerator.gather(value.detach().float().reshape(1)).nanmean().item())
