"""Teach a model when to think, with GRPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import ProcessorMixin, TrainerCallback
from trl import GRPOTrainer

from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.backbones_mmemb_r1 import checked_limit, limited_processor
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens, reading_places, round_ids
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.training.adaptive.advantages import (
    decision_advantages,
    group_normalised,
    leave_one_out,
    strata,
    token_advantages,
    utility_rewards,
)
from mmemb_r1.training.adaptive.completions import SHOWN, show_in_tensorboard, table_columns
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig, check_eval_groups
from mmemb_r1.training.adaptive.facts import adaptive_facts
from mmemb_r1.training.adaptive.forward import PolicyForward, padded_left
from mmemb_r1.training.adaptive.metrics import retrieval_metrics, rollout_metrics
from mmemb_r1.training.adaptive.prompts import (
    check_rendering,
    holds_video,
    policy_prompts,
    prompt_gate_inputs,
    rendered_alone,
    warn_of_overlap,
    with_pictures,
    without_frames,
)
from mmemb_r1.training.adaptive.rewards import TARGET_REWARDS, RewardFunction, find_reward
from mmemb_r1.training.adaptive.rollouts import RolloutGroup, as_columns, in_groups, read_group, roll_out
from mmemb_r1.training.adaptive.settled import settled_tables
from mmemb_r1.training.adaptive.vllm_rationales import VllmRationales, check_vllm
from mmemb_r1.training.base_config import check_anchored, check_one_space
from mmemb_r1.training.base_trainer import EpochSampler, with_earlier_phases
from mmemb_r1.training.direct_anchor import AnchoredTrainer, DirectAnchor, detached_direct
from mmemb_r1.training.distributed import (
    evaluating,
    keep_float32,
    num_processes,
    process_index,
    reduce_alike,
    summed,
    unwrapped,
    whole_weights,
    without_adapters,
)
from mmemb_r1.training.first_model import FirstModel
from mmemb_r1.training.gate import StopOnCollapse, train_apart
from mmemb_r1.training.targets import TargetScorer

CANDIDATES_FOLDER = "candidates"  # in the folder of the checkpoints: vectors of candidates


class AdaptiveGRPOTrainer(AnchoredTrainer, GRPOTrainer):
    """
    Teach a model that reasons well when to reason at all.

    A rollout is a direct embedding, or a rationale and the embedding after it. Groups share one prefill and hold both
    kinds; for the advantage of each token see [`decision_advantages`] and [`leave_one_out`].

    Args:
        model, processing_class: a model after the joint phase, possibly with adapters, and the processor beside it.
        train_dataset: a pairs table with `pair_id`, `query`, `target`, and optionally `task` and `negatives`. The
            pairs should be new to the joint phase: on those it knows by heart reasoning never pays.
        eval_dataset: a table of other pairs, to evaluate on: among the targets of its own tasks.
        joint_pairs: what the joint phase was trained on. Its targets are negatives too, task by task, and it warns of
            pairs that are in both tables.
        reward_funcs: further rewards in TRL's form, beside those that `args.rewards` names; `args.reward_weights` are
            their weights.

    Raises:
        ValueError: if a table or the processor is not what it has to be; while training, if a reward is not finite.
    """

    _tag_names = ["mmemb-r1", "grpo"]
    _name = "Adaptive GRPO"
    figures = (
        *("loss", "grad_norm", "reward", "utility_gap"),
        *(f"rewards/target_{kind}_reward/mean" for kind in TARGET_REWARDS),  # one of them is used
        *("gate/prob", "gate/thinks", "gate/right", "rationale/tokens", "rationale/truncated"),
        "direct_cosine_least",
    )
    args: AdaptiveGRPOConfig

    def __init__(
        self,
        model: MMEmbR1Model,
        args: AdaptiveGRPOConfig,
        train_dataset: Dataset,
        processing_class: ProcessorMixin,
        eval_dataset: Dataset | None = None,
        joint_pairs: Dataset | None = None,
        reward_funcs: Sequence[RewardFunction] = (),
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        config = model.config
        check_one_space(config, "adaptive")
        check_anchored(args.direct_anchor, hasattr(model, "peft_config"), eval_dataset is not None)
        tables = {"train": train_dataset, "joint": joint_pairs, "eval": eval_dataset}
        if args.max_image_tokens is not None:
            config.max_image_tokens = checked_limit(processing_class, args.max_image_tokens)
        processing_class = limited_processor(processing_class, config.max_image_tokens)  # GRPOTrainer calls it, too
        self.settlement, tables = settled_tables(args, config, processing_class, tables)
        train_dataset, joint_pairs, eval_dataset = tables["train"], tables["joint"], tables["eval"]
        limits = config.max_text_tokens, config.max_image_tokens, MediaOptions.of(config)
        prompts = {
            mode: policy_prompts(tables[mode], processing_class, *limits)
            for mode in ("train", "eval")
            if tables[mode] is not None
        }
        for table in prompts.values():
            check_rendering(table, processing_class, config)
        if args.use_vllm:
            check_vllm(model, args, [*prompts.values()])
        self._make_scorers(args, train_dataset, joint_pairs, eval_dataset)
        warn_of_overlap(train_dataset, joint_pairs)
        whole, use_vllm = without_adapters(model), args.use_vllm
        facts = adaptive_facts(model, args, train_dataset) | self.settlement.told()
        self.facts = with_earlier_phases(facts, whole)
        self.max_rounds = args.max_reasoning_rounds or config.max_reasoning_rounds
        self.max_tokens = args.max_reasoning_tokens or config.max_reasoning_tokens
        beta, num_tokens = args.beta, self.max_rounds * (self.max_tokens + num_control_tokens(config)) + 1
        args = args.for_trl(num_tokens, len(reward_funcs))
        is_needed = beta or args.scorer == "frozen" or hasattr(model, "peft_config")
        self._frozen = FirstModel(model) if is_needed else None
        if args.scorer == "frozen" and process_index() == 0:
            fingerprint = checkpoint_fingerprint(MMEmbR1Module(without_adapters(model), processing_class))
            for scorer in self._scorers.values():
                scorer.keep_in(Path(args.output_dir) / CANDIDATES_FOLDER, fingerprint)
        self._rows = torch.empty(0, dtype=torch.long)
        self._gate_logits = torch.empty(0)
        self._rendered: list[dict[str, Tensor]] | None = None  # the prompts of a batch with videos, one by one
        self._are_new = False  # rollouts that no table has shown yet
        stops = [StopOnCollapse(args.stop_on_collapse)] if args.stop_on_collapse else []
        super().__init__(
            model=model,
            reward_funcs=[*map(find_reward, args.all_rewards), *reward_funcs],
            args=args,
            train_dataset=prompts["train"],
            eval_dataset=prompts.get("eval"),
            processing_class=processing_class,
            callbacks=[*(callbacks or []), *stops],
            optimizers=optimizers,
            rollout_func=lambda prompts, _: self._roll_out(prompts),
        )
        self._check_sharding()
        if use_vllm:  # where TRL looks for it, which then has it take new weights, and corrects for what it drew
            self.vllm_generation = VllmRationales.of_trainer(self)
            self.use_vllm, self._last_loaded_step = True, -1
        if num_processes() > 1:  # TRL gathers pictures only in processes that have some, and waits for ever
            self.log_multimodal = False
        self._gate_inputs: Tensor | None = None
        if not self.is_fsdp_enabled:  # a model that is to be sharded is neither whole nor on its device yet
            self._gate_inputs = prompt_gate_inputs(self._bare_model, processing_class, prompts["train"])
        self.args.beta = self.beta = beta
        if self._frozen is not None:
            self._place_first(self._frozen, eval_dataset)

    def _make_scorers(
        self, args: AdaptiveGRPOConfig, pairs: Dataset, joint_pairs: Dataset | None, eval_pairs: Dataset | None
    ) -> None:
        """Make what measures rewards of each table, and the held-out table as the present model embeds it."""
        options = args.target_probability_temperature, args.num_candidates, args.seed
        self._scorers = {"train": TargetScorer(pairs, joint_pairs, *options)}
        if eval_pairs is not None:
            check_eval_groups(args)
            self._scorers |= {"eval": TargetScorer(eval_pairs, None, *options)}
            self._held_out = TargetScorer(eval_pairs, None, *options)

    def _place_first(self, first: FirstModel, eval_pairs: Dataset | None) -> None:
        """Move the first model to where the policy is by now, and let it be the reference and the anchor."""
        first.restore_dtype()
        if self.is_fsdp_enabled:
            first.shard(self.accelerator)
        else:
            first.to(self.accelerator.device)
        self.ref_model = first if self.beta else None
        args = self.args
        if args.direct_anchor is not None and eval_pairs is not None:
            self.anchor = DirectAnchor(first, args.direct_anchor, args.direct_anchor_weight, eval_pairs)

    def _check_sharding(self) -> None:
        """Refuse what can't shard the model here; FSDP2 can, of a model that is trained whole."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None) if self.is_fsdp_enabled else None
        if self.is_deepspeed_enabled or (plugin is not None and plugin.fsdp_version != 2):
            raise ValueError(
                "The adaptive phase runs on models that FSDP2 shards (accelerate launch --use_fsdp --fsdp_version 2), "
                "not FSDP1 or DeepSpeed; or use accelerate launch --multi_gpu, with adapters (lora) where memory is "
                "short."
            )
        if plugin is not None and hasattr(self.model, "peft_config"):
            raise ValueError(
                "The adaptive phase does not shard a model with adapters: these need little memory. Use accelerate "
                "launch --multi_gpu, or leave lora out."
            )
        if plugin is not None:
            keep_float32(plugin)

    def _load_best_model(self) -> None:
        """Load the best checkpoint; vLLM then gets its weights, however many steps were taken."""
        super()._load_best_model()
        self._last_loaded_step = -1

    def _whole(self) -> AbstractContextManager[None]:
        """Gather the weights of a sharded model for the length of a block."""
        return whole_weights(self.model, getattr(self.accelerator.state, "fsdp_plugin", None))

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

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        Draw rollouts of the held-out pairs, and return what training logs of its own, each name after `eval_`:
        rewards, the share of queries that think, and, as the present model embeds queries and targets, `hit@1` and
        `mrr` in three modes: `never`, `always` and `auto` (as the gate decides), see [`retrieval_metrics`].
        """
        if self.eval_dataset is not None:
            self._held_out.forget()
            if self.args.scorer == "live":
                self._scorers["eval"].forget()
        return super().evaluate(*args, **kwargs)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    # Rollouts

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Do as TRL, with an advantage of each token instead of each rollout."""
        self._rows = torch.tensor([row["row"] for row in inputs])
        self._embed_candidates()
        if self._gate_inputs is None:
            with self._scoring_model() as model:  # the first one: a run that goes on gets the same coordinates
                self._gate_inputs = prompt_gate_inputs(model, self.processing_class, self.train_dataset)
        inputs = self._with_own_media(inputs)
        with self._whole(), padded_left(self._tokenizer):
            output = super()._generate_and_score_completions(inputs)
        if self._rendered is not None:
            output["rendered"] = self._rendered  # TRL shuffles and parts it with the rest
        if self.anchor is not None:
            output["first_direct"] = self._first_direct
        output["advantages"] = self._token_advantages(output)
        output["rows"] = self._rows.to(output["advantages"].device)
        return output

    def _with_own_media(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Render the prompts here if one of them holds a video, and keep media from TRL, which takes pictures."""
        if not any(holds_video(row["prompt"]) for row in inputs):
            self._rendered = None
            return inputs
        if self.log_multimodal:
            self._logs["images"].extend(row["images"] for row in inputs)
        size, limit = self._group_size, self._bare_model.config.max_image_tokens
        prompts = [with_pictures(row["prompt"], row["images"]) for row in inputs[::size]]
        rendered = rendered_alone(self.processing_class, prompts, limit, self.accelerator.device)
        self._rendered = [one for one in rendered for _ in range(size)]
        left = [{name: value for name, value in row.items() if name != "images"} for row in inputs]
        return [{**row, "prompt": prompts[place // size]} for place, row in enumerate(left)]

    def _embed_candidates(self) -> None:
        """Embed the candidates of the rows at hand that are not embedded yet, or all when a live scorer is due."""
        steps = self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        mode = self._mode
        is_due = self.args.scorer == "live" and self.state.global_step // steps % self.args.refresh_steps == 0
        if is_due and mode == "train":
            self._scorers[mode].forget()
        with self._scoring_model() as scorer, self.accelerator.autocast():
            self._scorers[mode].embed(scorer, self.processing_class, self._rows)

    @contextmanager
    def _scoring_model(self) -> Iterator[MMEmbR1Model]:
        """Give the model that measures rewards, in eval mode, for the length of a block."""
        if self.args.scorer == "frozen" and self._frozen is not None:
            with self._frozen.run() as model:
                yield model
            return
        model = self._bare_model
        with evaluating(model), self._whole():
            yield model

    @property
    def _bare_model(self) -> Any:
        return without_adapters(self.accelerator.unwrap_model(self.model))

    def _roll_out(self, prompts: list[Any]) -> dict[str, Any]:
        """Draw completions of prompts that stand in groups; also which tokens were chosen, and what rewards read."""
        mode, size, model = self._mode, self._group_size, self._bare_model
        batch = render(self.processing_class, prompts[::size], max_image_tokens=model.config.max_image_tokens)
        batch = dict(batch.to(self.accelerator.device))
        rows_of_ids = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        prompt_ids = [ids[kept].tolist() for ids, kept in rows_of_ids]
        writer = self.vllm_generation.of(prompts[::size], prompt_ids) if self.use_vllm else None
        with self.accelerator.autocast():  # in the precision that log-probabilities will be taken in
            with evaluating(model):
                group = roll_out(
                    model,
                    batch,
                    size - self.args.num_direct_rollouts,
                    num_direct=self.args.num_direct_rollouts,
                    sampled=self.args.decisions == "sampled" and mode == "train",  # an evaluation wants both kinds
                    max_tokens=self.max_tokens,
                    max_rounds=self.max_rounds,
                    temperature=self.temperature,
                    writer=writer,
                )
            found = (group.direct, group.reasoned)
            if self.args.scorer == "frozen":
                with self._scoring_model() as scorer:
                    found = read_group(scorer, batch, group)
            if self.anchor is not None:
                before = found[0] if self.args.scorer == "frozen" else self.anchor.embed(batch)
                self._first_direct = before.repeat_interleave(size, dim=0)  # (B * G, D)
        vectors, own = (in_groups(*of, group.thinks) for of in (found, (group.direct, group.reasoned)))
        if mode == "eval":
            self._log_retrieval(group, own)
        self._log("similarity_to_scorer", nn.functional.cosine_similarity(vectors, own).mean())
        self._gate_logits = group.gate_logits
        return {
            "prompt_ids": [ids for ids in prompt_ids for _ in range(size)],
            **{name: of.tolist() for name, of in self._scorers[mode].measures(self._rows, vectors).items()},
            **as_columns(group, model.config, self._tokenizer.eos_token_id, self.max_tokens, self.max_rounds),
        }

    def _log_retrieval(self, group: RolloutGroup, vectors: Tensor) -> None:
        """Log how well the present model finds the targets of the rows at hand, among what it embeds itself."""
        model = self._bare_model
        with self.accelerator.autocast():
            self._held_out.embed(model, self.processing_class, self._rows)
        ranks = self._held_out.measures(self._rows, vectors)["target_rank"].view(group.thinks.shape)
        thinks = group.gate_logits.sigmoid() >= model.config.gate_threshold
        for name, value in retrieval_metrics(ranks, group.thinks, thinks).items():
            self._log(name, value)

    # Advantages

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """Compute rewards as TRL does; one that is not finite is an error."""
        # (B of all processes, number of rewards)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
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
            for name in (
                *("reasoned", "target_probability", self.args.target_reward_name),
                *("num_reasoning_tokens", "num_reasoning_rounds", "truncated"),
            )
        }
        self._fields["cost"] = rewards[start : start + len(inputs), list(self.args.all_rewards).index("cost")]
        if self.log_completions:
            self._show(inputs, completion_ids)
        return rewards

    def _show(self, inputs: Sequence[dict[str, Any]], completion_ids: Sequence[Sequence[int]]) -> None:
        """Add to the tables of completions what was decided, and what it was worth."""
        size, config = self._group_size, self._bare_model.config
        values, reasoned = (self._fields[name].view(-1, size) for name in (self.args.target_reward_name, "reasoned"))
        written = [list(chain(*round_ids(config, ids[len(config.opening_ids) :]))) for ids in completion_ids]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        probs = (self._gate_logits / self.temperature).sigmoid()
        for name, column in table_columns(inputs, texts, values, reasoned.bool(), probs).items():
            self._log_completion_extra(name, column)
        self._are_new = True

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log as TRL does, without frames in the table of completions, and that in TensorBoard too."""
        logged = self._logs["prompt"]
        for prompt in [logged.popleft() for _ in range(len(logged))]:
            logged.append(without_frames(prompt))
        super().log(*args, **kwargs)
        if self.log_completions and self._are_new:
            self._are_new = False
            columns = {name: list(self._logs["extra"][name]) for name in SHOWN}
            columns |= {name: list(values) for name, values in self._logs["rewards"].items()}
            show_in_tensorboard(self, columns, self.num_completions_to_print or len(columns["pair_id"]))

    def _token_advantages(self, output: dict[str, Any]) -> Tensor:
        """Compute the advantages `(B, C)` of the rollouts that were just scored; see [`token_advantages`]."""
        args, size = self.args, self._group_size
        rewards, reasoned = self._rewards.view(-1, size), self._fields["reasoned"].view(-1, size).bool()
        probs = (self._gate_logits / self.temperature).sigmoid()  # (N,)
        probabilities = self._fields["target_probability"].view(-1, size)
        gap = strata(probabilities, reasoned)[1].diff(dim=1).squeeze(1)  # (N,)
        for_decision = rewards
        if args.decision_reward == "utility":
            values = self._fields[args.target_reward_name].view(-1, size)
            gain, costs = (strata(of.view(-1, size), reasoned)[1] for of in (values, self._fields["cost"]))  # (N, 2)
            utility = args.target_probability_weight * gain.diff(dim=1).squeeze(1) + args.cost_weight * costs[:, 1]
            for_decision = utility_rewards(utility, reasoned, args.utility_clip, args.utility_tolerance)
        if args.decisions == "sampled":
            decided = later = group_normalised(rewards).flatten()  # (B,)
        else:
            decided = decision_advantages(for_decision, reasoned, probs, args.min_decision_prob).flatten()  # (B,)
            later = leave_one_out(rewards, reasoned).flatten()
        threshold = self._bare_model.config.gate_threshold
        used = self._gate_logits.sigmoid()  # as `encode` takes it
        for name, value in rollout_metrics(self._fields, rewards, reasoned, gap, used, threshold).items():
            self._log(name, value)
        mask = output["completion_mask"] * output["tool_mask"]  # (B, C)
        ids, whole = output["completion_ids"], output["completion_mask"]
        markers = reading_places(self._bare_model.config, ids, whole, read=True)
        counts = torch.stack([mask.new_tensor(len(mask)), mask[:, 1:].sum(), mask.sum()]).float()
        return token_advantages(decided, later, markers, summed(counts), args.decision_weight, args.rationale_weight)

    # The loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run a forward and a backward pass over a batch; gradients are the mean over all processes."""
        reduce_alike(self.model)
        loss = super().training_step(*args, **kwargs)
        self.average_gradients()
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the gate's log-probabilities for decisions in the same pass as the tokens'."""
        config, temperature = self._bare_model.config, self.temperature
        if model is self._frozen:
            with self._frozen.run() as first:
                policy = PolicyForward(first, config, temperature, self._rendered)
                return super()._get_per_token_logps_and_entropies(policy, *args, **kwargs)
        self._policy = PolicyForward(unwrapped(model), config, temperature, self._rendered)
        return super()._get_per_token_logps_and_entropies(self._policy, *args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Add to TRL's loss terms on the live embeddings of the same pass: a contrastive one, and the anchor's."""
        self._rendered = inputs.get("rendered")
        loss = super()._compute_loss(model, inputs)
        (output,) = self._policy.outputs
        vectors, last = output["embeddings"], output["path_mask"].sum(dim=1) - 1  # (B, K, D), (B,)
        scale = self.current_gradient_accumulation_steps if self.model.training else 1
        if self.anchor is not None:
            loss = loss + self.anchor.loss(vectors[:, 0], inputs["first_direct"], len(vectors)) / scale
            vectors = detached_direct(vectors)
        if self.args.contrastive_weight:
            final = vectors[torch.arange(len(last), device=last.device), last]  # (B, D)
            scorer = self._scorers[self._mode]
            losses = [-scorer.log_probability(inputs["rows"], of).mean() for of in (vectors[:, 0], final)]
            term = torch.stack(losses).mean()
            self._log("contrastive", term)
            loss = loss + self.args.contrastive_weight * term / scale
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Train the gate with a learning rate and in coordinates of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        train_apart(optimizer, self._bare_model.gate, self.args.gate_learning_rate, lambda: self._gate_inputs)
        return optimizer

    # Logs

    def _log(self, name: str, value: Tensor) -> None:
        self._metrics[self._mode][name].append(
            self.accelerator.gather(value.detach().float().reshape(1)).nanmean().item()
        )
