"""The joint phase: one trainer for thinking and embedding."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, TrainerCallback
from trl.trainer.base_trainer import _BaseTrainer

from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.training.joint_collator import Augment, JointCollator
from mmemb_r1.training.joint_config import JointConfig
from mmemb_r1.training.joint_sampler import TaskBatchSampler
from mmemb_r1.training.losses import false_negatives, matryoshka, path_loss, rationale_loss

REQUIRED_COLUMNS = ("query", "target")


class JointTrainer(_BaseTrainer):
    """
    Trains thinking and embedding together on pairs with rationales.

    One forward pass per side over `prompt <|embed|> <think> r </think> <|embed|>` gives the direct embedding, the
    reasoned one and the language-model loss on the rationale.

    Args:
        model ([`MMEmbR1Model`]): the model.
        args ([`JointConfig`]): arguments.
        train_dataset (`datasets.Dataset`): a pairs table with `query`, `target`, and optionally `task`,
            `query_rationale`, `target_rationale` (lists of segments).
        processing_class (`ProcessorMixin`): the processor saved beside the model.
        augment (`Callable`, *optional*): applied to every training picture, a new draw each time.
        callbacks (`list[TrainerCallback]`, *optional*): as for [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*): as for [`~transformers.Trainer`].

    Raises:
        ValueError: if a column is missing or the table is empty.
    """

    _tag_names = ["mmemb-r1", "joint"]
    _name = "Joint"
    loss_is_scaled_for_ga = False  # every term is a mean over its batch
    _paper = {
        "title": "MMEmb-R1: Reasoning-Enhanced Multimodal Embedding with Pair-Aware Selection and Adaptive Control",
        "id": "2604.06156",
    }

    def __init__(
        self,
        model: MMEmbR1Model,
        args: JointConfig,
        train_dataset: Dataset,
        processing_class: ProcessorMixin,
        augment: Augment | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        _check_table(train_dataset)
        collator = JointCollator(
            processing_class,
            model.config,
            use_rationales=args.use_rationales,
            max_rationale_tokens=args.max_rationale_tokens,
            augment=augment,
            num_chunks=args.num_length_chunks,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model.add_model_tags(self._tag_names)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here, unlike in TRL's own trainers."""

    def get_train_dataloader(self) -> DataLoader:
        """Batches of sub-batches of one task each."""
        args = self.args
        tasks = (
            self.train_dataset["task"] if "task" in self.train_dataset.column_names else [""] * len(self.train_dataset)
        )
        per_epoch = math.ceil(len(self.train_dataset) / args.train_batch_size)
        number = args.max_steps * args.gradient_accumulation_steps if args.max_steps > 0 else per_epoch
        sampler = TaskBatchSampler(
            tasks,
            args.train_batch_size,
            args.sub_batch_size,
            number,
            args.task_weights,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=sampler,
                collate_fn=self.data_collator,
                num_workers=args.dataloader_num_workers,
                persistent_workers=args.dataloader_num_workers > 0,
            )
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrastive terms over the paths and the language-model loss on the rationales, for one batch."""
        args = self.args
        query, target = forward_side(model, inputs["query"]), forward_side(model, inputs["target"])
        index = inputs["target_index"]
        targets, target_paths = target.embeddings[index], target.path_mask[index]  # (B, L, D), (B, L)
        ignore = false_negatives(inputs["query_keys"], index)
        total = query.embeddings.new_zeros(())
        terms: dict[str, Tensor] = {}
        for dim in [query.embeddings.shape[-1], *(args.matryoshka_dims or [])]:
            contrastive, parts = path_loss(
                matryoshka(query.embeddings, dim),
                query.path_mask,
                matryoshka(targets, dim),
                target_paths,
                ignore,
                args.path_weights,
                args.temperature,
            )
            total = total + contrastive
            terms = terms or parts  # the terms at full width are logged
        for side, output in (("query", query), ("target", target)):
            if output.rationale_logps.numel():
                loss = rationale_loss(output.rationale_logps)
                terms[f"rationale_{side}"] = loss.detach()
                total = total + args.rationale_weight * loss
        self._record(terms)
        return (total, {"query": query, "target": target}) if return_outputs else total

    def _record(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] += float(value)
            self._counts[name] += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss term since the last log."""
        logs |= {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        super().log(logs, start_time)


class Side(NamedTuple):
    """
    One side of a batch after its forward passes.

    Attributes:
        embeddings: `(B, K, D)`, per path.
        path_mask: `(B, K)` bool, which of them exist.
        rationale_logps: `(N,)` log-probabilities of the rationale tokens, in the order of the chunks.
    """

    embeddings: Tensor
    path_mask: Tensor
    rationale_logps: Tensor


def forward_side(model: nn.Module, side: dict[str, Any]) -> Side:
    """Run the chunks of one side of a batch and put their rows back in order."""
    outputs = [model(**chunk) for chunk in side["chunks"]]
    paths = max(output.embeddings.shape[1] for output in outputs)
    embeddings, masks = [], []
    for output in outputs:
        extra = paths - output.embeddings.shape[1]
        embeddings.append(nn.functional.pad(output.embeddings, (0, 0, 0, extra)))  # (b, k, D) -> (b, K, D)
        masks.append(nn.functional.pad(output.path_mask, (0, extra)))  # (b, k) -> (b, K)
    return Side(
        embeddings=torch.cat(embeddings)[side["order"]],
        path_mask=torch.cat(masks)[side["order"]],
        rationale_logps=torch.cat([output.rationale_logps for output in outputs]),
    )


def _check_table(dataset: Dataset) -> None:
    columns = getattr(dataset, "column_names", None) or []
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"The pairs table lacks the columns {missing}; it has {columns}.")
    if len(dataset) == 0:
        raise ValueError("The pairs table is empty; pass at least one pair.")
