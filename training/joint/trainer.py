"""Train reasoning and embedding together."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, TrainerCallback
from trl.trainer.base_trainer import _BaseTrainer

from mmemb_r1.modeling.backbones_mmemb_r1 import checked_limit
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.training.augment import Augment
from mmemb_r1.training.base_config import check_anchored, check_one_space
from mmemb_r1.training.base_trainer import last_checkpoint, with_earlier_phases
from mmemb_r1.training.direct_anchor import AnchoredTrainer, DirectAnchor
from mmemb_r1.training.distributed import keep_float32, num_processes, reduce_alike, summed, unwrapped
from mmemb_r1.training.first_model import FirstModel
from mmemb_r1.training.joint.collator import Chunk, JointBatch, JointCollator, SideBatch
from mmemb_r1.training.joint.config import JointConfig
from mmemb_r1.training.joint.data import JointPairs, SelectedRationales, check_selected, check_tables
from mmemb_r1.training.joint.facts import joint_facts
from mmemb_r1.training.joint.forward import (
    SIDES,
    RandomState,
    Vectors,
    contrastive_loss,
    encode,
    encode_directly,
    fill_up,
    in_order,
    token_loss,
    token_totals,
)
from mmemb_r1.training.joint.keys import content_keys
from mmemb_r1.training.joint.metrics import Means
from mmemb_r1.training.joint.retrieval import Evaluator, measure_retrieval
from mmemb_r1.training.joint.sampler import TaskBatchSampler
from mmemb_r1.training.joint.settled import settle_joint
from mmemb_r1.training.kernels import apply_liger_kernels
from mmemb_r1.training.tables import tasks_of

logger = logging.getLogger(__name__)


def _collator(
    args: JointConfig, processor: ProcessorMixin, model: MMEmbR1Model, augment: Augment | None
) -> JointCollator:
    """Make the collator of training batches."""
    config = model.config
    if args.use_rationales and args.max_rationale_tokens > config.max_reasoning_tokens:
        logger.warning(
            "Rationales of up to %d tokens are trained on (max_rationale_tokens), but the model writes at most %d "
            "(max_reasoning_tokens of its config): longer ones will be cut when it embeds.",
            args.max_rationale_tokens,
            config.max_reasoning_tokens,
        )
    if augment is None and args.augment_pictures:
        from mmemb_r1 import atlas

        augment = atlas.augment
    return JointCollator(
        processor,
        config,
        use_rationales=args.use_rationales,
        max_reasoning_rounds=args.max_reasoning_rounds,
        max_rationale_tokens=args.max_rationale_tokens,
        augment=augment,
        num_chunks=args.num_length_chunks,
        chunk_size=args.mini_batch_size,
        chunk_tokens=args.mini_batch_tokens,
        pixel_dtype=torch.bfloat16 if args.bf16 else model.dtype,
    )


def _adapted(model: MMEmbR1Model, args: JointConfig, peft_config: Any | None) -> Any:
    """Freeze what is not trained, and add adapters, if they are wanted."""
    if args.freeze_vision_tower or peft_config is not None:
        from mmemb_r1.training.adapters import freeze_vision_tower, with_adapters

        if args.freeze_vision_tower:
            freeze_vision_tower(model)
        if peft_config is not None:
            return with_adapters(model, peft_config, seed=args.seed)
    return model


class JointTrainer(AnchoredTrainer, _BaseTrainer):
    """
    Train reasoning and embedding together on pairs with rationales.

    One forward pass per side over `prompt <|embed|> <think> r </think> <|embed|>` gives the direct embedding, the
    gate's logit, the language-model loss on the rationale and the reasoned embedding.

    Args:
        model, processing_class: the model, and the processor saved beside it.
        train_dataset: a pairs table with `query`, `target`, and optionally `pair_id`, `task`, `negatives` (lists of
            inputs), `query_rationale` and `target_rationale` (lists of segments).
        eval_dataset: another such table of other pairs; the loss and its terms are measured on it.
        rationales: what `mmemb-r1 select` kept of these pairs, in place of the pairs' own rationales. With each pair
            one of them is drawn from the posterior; pairs of which nothing was kept train the direct path alone.
        augment: applied to every training picture, with a random stream of its own. Default: nothing, or with
            `args.augment_pictures` [`~mmemb_r1.atlas.augment`].
        peft_config: train adapters instead of the whole model.
        evaluator: called with the model as an [`~mmemb_r1.MMEmbR1`] in each evaluation, to which its numbers belong.
            Default: with `args.eval_retrieval`, a [`~mmemb_r1.evaluation.RetrievalEvaluator`] of the `eval_dataset`.

    Raises:
        ValueError: if a table is not what it has to be, or the two have pairs in common.
        FloatingPointError: while training, if a loss is not finite; it names the term and the rows.
    """

    _tag_names = ["mmemb-r1", "joint"]
    _name = "Joint"
    figures = (
        *("loss", "grad_norm", "learning_rate", "accuracy_direct", "accuracy_reasoned", "utility_gap"),
        *("rationale_query", "gate_prob", "gate_right", "direct_cosine_least", "tokens_per_second"),
        *("never_hit@1", "always_hit@1", "auto_hit@1"),  # of an evaluation
    )
    loss_is_scaled_for_ga = False  # every term is a mean over its batch
    args: JointConfig

    def __init__(
        self,
        model: MMEmbR1Model,
        args: JointConfig,
        train_dataset: Dataset,
        processing_class: ProcessorMixin,
        eval_dataset: Dataset | None = None,
        rationales: Dataset | None = None,
        augment: Augment | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        evaluator: Evaluator | None = None,
    ) -> None:
        check_tables(train_dataset, eval_dataset)
        check_one_space(model.config, "joint")
        check_anchored(args.direct_anchor, peft_config is not None, eval_dataset is not None)
        self._seed = args.seed if args.data_seed is None else args.data_seed
        if rationales is not None:
            check_selected(rationales)
        if args.max_image_tokens is not None:
            model.config.max_image_tokens = checked_limit(processing_class, args.max_image_tokens)
        self.settlement = settle_joint(args, model.config, processing_class, train_dataset, eval_dataset, rationales)
        train_dataset, *evaluated = self.settlement.tables
        eval_dataset = next(iter(evaluated), None)
        rationales = self.settlement.rationales if args.use_rationales else rationales
        if args.best_rationale_only and rationales is None:
            raise ValueError(
                "best_rationale_only chooses among selected rationales, and there are none; give rationales "
                "(--rationales), or leave it out."
            )
        selected = None if rationales is None else SelectedRationales(rationales, args.best_rationale_only)
        tables = {"train": (train_dataset, selected), "eval": (eval_dataset, None)}  # selected ones are for training
        self._pairs = {
            mode: JointPairs(table, self._seed, drawn_from, args.weight_by_posterior, args.num_hard_negatives, without)
            for (mode, (table, drawn_from)), without in zip(tables.items(), self.settlement.without, strict=False)
            if table is not None
        }
        facts = joint_facts(model, args, train_dataset, selected, peft_config) | self.settlement.told()
        self.facts = with_earlier_phases(facts, model)
        self._media = MediaOptions.of(model.config)
        collator = _collator(args, processing_class, model, augment)
        if args.use_liger_kernel:
            apply_liger_kernels(model.vlm, args.liger_kernel_config, args.device)
        model = _adapted(model, args, peft_config)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if args.direct_anchor is not None and eval_dataset is not None:
            first = FirstModel(self.model)
            first.to(self.accelerator.device)
            self.anchor = DirectAnchor(first, args.direct_anchor, args.direct_anchor_weight, eval_dataset)
        self._evaluator = self._retrieval_evaluator() if evaluator is None else evaluator
        self._check_launch()
        self._eval_collator = copy.copy(collator)
        self._eval_collator.augment = None
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)
        self._means = {"train": Means(), "eval": Means()}
        self._weight = 1.0  # of a batch in the means
        self._tokens, self._since = 0, time.perf_counter()
        self.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # `train` sets it for each step

    def _check_launch(self) -> None:
        """Refuse what can't be done as the processes were launched."""
        if self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed takes an optimiser step with every backward pass, of which a batch has several here. Shard "
                "the model with FSDP2 (accelerate launch --use_fsdp --fsdp_version 2), or use accelerate launch "
                "--multi_gpu, with adapters (lora) where memory is short."
            )
        if self.is_fsdp_enabled:
            if self.anchor is not None:
                raise ValueError(
                    "direct_anchor runs the model as it was with its first adapters, which FSDP would shard. Adapters "
                    "need little memory: use accelerate launch --multi_gpu, or leave direct_anchor out."
                )
            if self._evaluator is not None:
                raise ValueError(
                    "Retrieval can't be measured while FSDP shards the weights: no process could write a rationale by "
                    "itself. Leave eval_retrieval out, and run mmemb-r1 evaluate on the checkpoints."
                )
            keep_float32(self.accelerator.state.fsdp_plugin)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Load this process's part of batches that are made of sub-batches of one task each."""
        return self._loader("train", self.train_dataset, **self._mixing())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Load batches of the same make, tasks by their number of pairs; they are the same each time."""
        if eval_dataset is not None and eval_dataset is not self.eval_dataset:
            raise ValueError(
                "JointTrainer evaluates on the eval_dataset that it was made with; leave the argument out."
            )
        if self.eval_dataset is None:
            raise ValueError("There is nothing to evaluate on: JointTrainer was made without an eval_dataset.")
        return self._loader("eval", self.eval_dataset)

    def _mixing(self) -> dict[str, Any]:
        """Tell how training pairs are put into batches, as arguments of the sampler."""
        args = self.args
        return {
            "num_batches": args.max_steps * args.gradient_accumulation_steps if args.max_steps > 0 else None,
            "task_weights": args.task_weights,
            "size_exponent": args.task_size_exponent,
            "keys": content_keys(self.train_dataset, self._media) if args.separate_equal_pairs else None,
        }

    def _loader(self, mode: str, table: Dataset, **mixing: Any) -> DataLoader:
        sampler = TaskBatchSampler(
            tasks_of(table),
            self.args.train_batch_size * num_processes(),
            self.args.sub_batch_size,
            seed=self._seed,
            process=(self.args.process_index, num_processes()),
            **mixing,
        )
        loader = DataLoader(
            self._pairs[mode],
            batch_sampler=sampler,
            collate_fn=self.data_collator if mode == "train" else self._eval_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_persistent_workers and self.args.dataloader_num_workers > 0,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and self.accelerator.device.type == "cuda",
            generator=torch.Generator().manual_seed(self._seed),  # the global one is left to dropout
        )
        # not `accelerator.prepare`: the sampler has parted the batches, and chunks go to the device one at a time
        return prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=False)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    # Retrieval

    def _retrieval_evaluator(self) -> Evaluator | None:
        if not self.args.eval_retrieval:
            return None
        if self.eval_dataset is None:
            raise ValueError(
                f"eval_retrieval={self.args.eval_retrieval}, but there are no pairs to measure it on; give an "
                "eval_dataset (--eval-pairs)."
            )
        from mmemb_r1.evaluation import RetrievalEvaluator

        return RetrievalEvaluator(
            self.eval_dataset, self.args.eval_retrieval, batch_size=self.args.per_device_eval_batch_size
        )

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Measure the loss and, with an evaluator, retrieval, by which the best checkpoint may be found."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = self._means["eval"].take()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        if self._evaluator is not None:
            with self.compute_loss_context_manager():
                measured = measure_retrieval(
                    self._evaluator, unwrapped(self.model), self.processing_class, self.encoding_file()
                )
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        return output

    # The loss

    def compute_loss(
        self, model: nn.Module, inputs: JointBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """
        Add up the contrastive terms over the paths, the loss on the rationales and, if wanted, the gate's loss.

        With several processes its mean over them is the loss of the whole batch, and so are the gradients.
        """
        totals = self._begin(inputs)
        vectors, own_losses = {}, []
        for name in SIDES:
            side, parts = inputs[name], []
            for chunk in side["chunks"]:
                part, own = self._run_chunk(unwrapped(model), name, side, chunk, totals[name])
                parts.append(part)
                own_losses.append(own)
            vectors[name] = in_order(side, parts)
        contrastive, metrics = contrastive_loss(vectors, inputs, self.args)
        self._means[self._mode].add(metrics, self._weight)
        loss = contrastive + torch.stack(own_losses).sum()
        return (loss, vectors) if return_outputs else loss

    def _begin(self, inputs: JointBatch) -> dict[str, float]:
        """Start a batch: count its tokens, and sum the weights of its rationale tokens."""
        if self._mode == "train":
            self._tokens += sum(
                int(chunk["features"]["attention_mask"].sum()) for name in SIDES for chunk in inputs[name]["chunks"]
            )
        if self.is_fsdp_enabled:
            fill_up(inputs, self.accelerator.device)
        self._shares = {name: torch.zeros((), device=self.accelerator.device) for name in SIDES}
        if self.anchor is not None:
            num_rows = torch.tensor(sum(len(inputs[name]["index"]) for name in SIDES))
            self._num_rows = float(summed(num_rows.to(self.accelerator.device)))
        return token_totals(inputs, self.accelerator.device)

    def _run_chunk(
        self, model: nn.Module, name: str, side: SideBatch, chunk: Chunk, total: float
    ) -> tuple[Vectors, Tensor]:
        """Run a chunk; return its vectors, and its share of the losses that are no comparison: tokens and anchor."""
        first = None
        if self.anchor is not None:
            with self.anchor.first.run() as before:
                first = encode_directly(before, chunk)
        part, logps = encode(model, chunk)
        loss = self._rationale_loss(name, side, chunk, logps, total)
        if self.anchor is not None and first is not None:
            moved = self.anchor.loss(part.embeddings[:, 0], first, self._num_rows, chunk["num_rows"])
            loss = loss + num_processes() * moved
        return part, loss

    def _rationale_loss(self, name: str, side: SideBatch, chunk: Chunk, logps: Tensor, total: float) -> Tensor:
        """Weigh a chunk's share of the loss on rationale tokens, and keep it for the log."""
        share = token_loss(side, chunk, logps, total)
        self._shares[name] = self._shares[name] + share.detach()
        return num_processes() * self.args.rationale_weight * share  # the mean over the processes has to be the sum

    # Steps

    def training_step(
        self, model: nn.Module, inputs: JointBatch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a forward and a backward pass over a batch; gradients are the mean over all processes."""
        reduce_alike(model)
        try:
            if not self.args.caches_gradients:
                loss = super().training_step(model, inputs, num_items_in_batch)
            else:
                loss = self._cached_step(model, inputs)
        except FloatingPointError as error:
            raise FloatingPointError(f"after {self.state.global_step} steps {error}") from error
        self._log_rationale_loss()
        self.average_gradients()
        return loss

    def _cached_step(self, model: nn.Module, inputs: JointBatch) -> Tensor:
        """
        Run a step with gradient caching: memory depends on the chunk, not on the batch.

        Vectors are made without gradient, the loss is taken of them, and then they are made again chunk by chunk, with
        gradient, to pass the loss's gradient on. Source: GradCache (arXiv 2101.06983).
        """
        model.train()
        encoder, device = unwrapped(model), self.accelerator.device
        scale = 1 / self.current_gradient_accumulation_steps
        totals = self._begin(inputs)
        runs, leaves = [], {}
        with self.compute_loss_context_manager():
            for name in SIDES:
                parts = []
                for chunk in inputs[name]["chunks"]:
                    state = RandomState.now(device)
                    with torch.no_grad():
                        part, _ = encode(encoder, chunk, with_tokens=False)
                    part.embeddings.requires_grad_()
                    part.gate_logits.requires_grad_()
                    parts.append(part)
                    runs.append((name, chunk, state, part))
                leaves[name] = in_order(inputs[name], parts)
            loss, metrics = contrastive_loss(leaves, inputs, self.args)
        self._means[self._mode].add(metrics, self._weight)
        loss.backward()
        total = loss.detach()
        for place, (name, chunk, state, leaf) in enumerate(runs):
            last = place == len(runs) - 1
            with contextlib.nullcontext() if last or self.is_fsdp_enabled else self.accelerator.no_sync(model):
                with state.restored(device), self.compute_loss_context_manager():
                    part, own = self._run_chunk(encoder, name, inputs[name], chunk, totals[name])
                    passed = own
                    for made, kept in ((part.embeddings, leaf.embeddings), (part.gate_logits, leaf.gate_logits)):
                        if kept.grad is not None:
                            passed = passed + (made * kept.grad).sum()
                self.accelerator.backward(passed * scale)
            total = total + own.detach()
        return total * scale

    def prediction_step(
        self, model: nn.Module, inputs: JointBatch, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Compute the loss of a batch of the evaluation table, and its terms; all weigh as much as it has rows."""
        self._weight = float(summed(torch.tensor(len(inputs["query"]["index"]), device=self.accelerator.device)))
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            loss = summed(loss) / num_processes()
            self._means["eval"].add({"loss": loss}, self._weight)
            self._log_rationale_loss()
        finally:
            self._weight = 1.0
        return loss, None, None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        Train as [`~transformers.Trainer`] does, but `True` stands for the last complete checkpoint: a process that was
        killed may have left a part of one. The gate stays as it is unless `gate_weight` is set.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"There is no complete checkpoint in {self.args.output_dir} to go on from; leave "
                    "resume_from_checkpoint out to start anew."
                )
        self._since = time.perf_counter()
        # parameters that never get a gradient are an error where models are sharded
        frozen = [] if self.args.gate_weight else [one for one in self.model.gate.parameters() if one.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    # Logs and files

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _log_rationale_loss(self) -> None:
        """Log the loss on the rationale tokens of the batch that was just run."""
        for name, share in self._shares.items():
            total = summed(share)
            if bool(total > 0):
                self._means[self._mode].add({f"rationale_{name}": total}, self._weight)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, beside the rest, the means since the last log of each loss term and of [`batch_metrics`]."""
        means, now = self._means["train"].take() if self._mode == "train" else {}, time.perf_counter()
        if means:
            means["tokens_per_second"] = self._tokens * num_processes() / max(now - self._since, 1e-9)
        self._tokens, self._since = 0, now  # also after an evaluation, whose time is not training's
        super().log({**logs, **means}, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # a checkpoint counts as complete with what is written after this

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `README.md` beside the model in `output_dir`. Adapters alone get TRL's card."""
        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero():
            return
        if not (folder / "config.json").exists():
            super().create_model_card(model_name, dataset_name, tags)
            return
        from mmemb_r1.model_card import write_model_card

        facts = {"data": dataset_name} if dataset_name else {}
        write_model_card(folder, training=facts | self.facts | {"steps": self.state.global_step})
