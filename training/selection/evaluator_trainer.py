"""Train a vision-language model to say whether a query and a target match."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl.trainer.base_config import _BaseConfig
from trl.trainer.base_trainer import _BaseTrainer

from mmemb_r1.atlas import augment
from mmemb_r1.modeling.backbones_mmemb_r1 import rotary_positions
from mmemb_r1.modeling.files_mmemb_r1 import as_new
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.training.base_config import CheckedConfig
from mmemb_r1.training.logs import log_figures
from mmemb_r1.training.run import TrainingRun
from mmemb_r1.training.selection.evaluator_data import KINDS, MatchExample, MatchExamples
from mmemb_r1.training.selection.vlm_evaluator import (
    PROMPT_FILE,
    EvaluatorPrompt,
    PromptRenderer,
    answer_ids,
    match_logit,
)


@dataclass
class EvaluatorConfig(CheckedConfig, _BaseConfig):
    """
    Configuration of [`EvaluatorTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    A strong chat model is an evaluator without any training; train one where there is none at hand.

    Args:
        prompt (`str`, *optional*, defaults to `"evaluator"`):
            The text around a pair: `"evaluator"`, `"evaluator-short"` (for tiny models) or a text file.
        none_share (`float`, *optional*, defaults to `0.25`):
            How often an example has no rationale, relative to the other two.
        right_share (`float`, *optional*, defaults to `0.45`):
            How often it has its own rationale.
        wrong_share (`float`, *optional*, defaults to `0.3`):
            How often it has the rationale of another pair of its task.
        tempting_share (`float`, *optional*, defaults to `0.5`):
            How often a pair that doesn't match beside a wrong rationale is the one that this rationale describes.
        blind_share (`float`, *optional*, defaults to `0.0`):
            How often the pictures that a right rationale is about are hidden, where there is text beside them. What
            can't be seen has to be read: otherwise a small model that sees well learns to ignore rationales.
        draws_per_pair (`int`, *optional*, defaults to `8`):
            Examples of an epoch per pair of the table.
        task_weights (`dict[str, float]`, *optional*):
            How often each task is drawn; tasks without a weight are not. `None` draws by their number of pairs.
        augment_pictures (`bool`, *optional*, defaults to `False`):
            Whether every picture is shifted, scaled, turned and recoloured a little, anew for each example.
        max_text_tokens (`int`, *optional*):
            The text of an input is truncated to so many tokens. `None`: never.
        max_image_tokens (`int`, *optional*):
            Larger pictures are made smaller, to so many tokens each. `None`: never.
    """

    prompt: str = field(default="evaluator", metadata={"help": "The text around a pair."})
    none_share: float = field(default=0.25, metadata={"help": "Share of examples without a rationale."})
    right_share: float = field(default=0.45, metadata={"help": "Share of examples with their own rationale."})
    wrong_share: float = field(default=0.3, metadata={"help": "Share of examples with another pair's rationale."})
    tempting_share: float = field(default=0.5, metadata={"help": "Share of wrong rationales that tempt."})
    blind_share: float = field(default=0.0, metadata={"help": "Share of rationales whose pictures are hidden."})
    draws_per_pair: int = field(default=8, metadata={"help": "Examples of an epoch per pair of the table."})
    task_weights: dict | None = field(default=None, metadata={"help": "How often each task is drawn."})
    augment_pictures: bool = field(default=False, metadata={"help": "Vary every picture a little."})
    max_text_tokens: int | None = field(default=None, metadata={"help": "Longest text of an input."})
    max_image_tokens: int | None = field(default=None, metadata={"help": "Most tokens of a picture."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep columns for the collator."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("none_share", "right_share", "wrong_share", "tempting_share", "blind_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}; allowed: 0 or more.")
        if not self.none_share > 0:
            raise ValueError("none_share=0; allowed: more than 0, as selection also asks without a rationale.")
        if self.draws_per_pair < 1:
            raise ValueError(f"draws_per_pair={self.draws_per_pair}; allowed: 1 or more.")


@dataclass(frozen=True, kw_only=True)
class EvaluatorRun(TrainingRun):
    """Describe the training of an evaluator."""

    config_class: ClassVar[type] = EvaluatorConfig


class EvaluatorTrainer(_BaseTrainer):
    """
    Trains the log-odds of "yes" against "no" after the question whether a pair matches.

    Args:
        model (`PreTrainedModel`): a vision-language model.
        args ([`EvaluatorConfig`]): arguments.
        train_dataset ([`MatchExamples`]): examples.
        processing_class (`ProcessorMixin`): the model's processor.
        callbacks (`list[TrainerCallback]`, *optional*): as for [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*): as for [`~transformers.Trainer`].
    """

    _tag_names = ["mmemb-r1", "evaluator"]
    _name = "Evaluator"
    loss_is_scaled_for_ga = False  # it is a mean over its batch

    def __init__(
        self,
        model: PreTrainedModel,
        args: EvaluatorConfig,
        train_dataset: MatchExamples,
        processing_class: ProcessorMixin,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        renderer = PromptRenderer(
            processing_class, EvaluatorPrompt.load(args.prompt), args.max_text_tokens, args.max_image_tokens
        )
        self.answers = answer_ids(processing_class.tokenizer)
        self._right: dict[str, list[Tensor]] = defaultdict(list)
        super().__init__(
            model=model,
            args=args,
            data_collator=ExampleCollator(renderer),
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        log_figures(self, ("loss", "grad_norm", "learning_rate", *(f"accuracy_{kind}" for kind in KINDS)))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        as_new(Path(output_dir or self.args.output_dir).glob("*.safetensors"))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, kinds = inputs.pop("labels"), inputs.pop("kinds")
        logit = self.match_logits(model, inputs)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, labels)
        right = ((logit > 0) == labels.bool()).float().detach()
        for number, kind in enumerate(KINDS):
            self._right[f"accuracy_{kind}"].append(right[kinds == number])
        return (loss, {"logits": logit}) if return_outputs else loss

    def match_logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return `(B,)` log-odds of "yes" after complete prompts, padded on the left."""
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        media = {name: value for name, value in inputs.items() if name not in tokens}
        positions, _ = rotary_positions(self.accelerator.unwrap_model(model), **tokens, media=media)
        output = model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1)
        return match_logit(output.logits[:, -1], *self.answers)

    @torch.inference_mode()
    def measure(self, pairs: Dataset, size: int = 2000, seed: int = 0) -> dict[str, float]:
        """
        Measure how often the sign of the match logit is right, on pairs that were not trained on.

        Args:
            pairs: a table like the one that was trained on.
            size: number of examples; tasks are drawn by their number of pairs.
            seed: of the examples.

        Returns:
            By rationale: `accuracy_none`, `accuracy_right`, `accuracy_wrong`, and the numbers of examples `n_none` ...
        """
        examples = match_examples(
            pairs, self.args, size=size, seed=seed, task_weights=None, blind_share=0.0, augment=None
        )
        self.model.eval()
        right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        batch_size = self.args.per_device_eval_batch_size
        for start in range(0, size, batch_size):
            some = [examples[index] for index in range(start, min(start + batch_size, size))]
            inputs = self._prepare_inputs(self.data_collator(some))
            labels, kinds = inputs.pop("labels"), inputs.pop("kinds")
            hits = (self.match_logits(self.model, inputs) > 0) == labels.bool()
            for kind, hit in zip(kinds.tolist(), hits.tolist(), strict=True):
                right[KINDS[kind]].append(hit)
        counted = {f"n_{kind}": len(hits) for kind, hits in right.items()}
        return {f"accuracy_{kind}": sum(hits) / len(hits) for kind, hits in right.items() if hits} | counted

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the accuracy by kind of rationale since the last log."""
        for name, parts in self._right.items():
            if len(right := torch.cat(parts)):
                logs[name] = float(right.mean())
        self._right.clear()
        super().log(logs, start_time)


def match_examples(pairs: Dataset, args: EvaluatorConfig, **overrides: Any) -> MatchExamples:
    """The examples of a pairs table that a config asks for; `overrides` are arguments of [`MatchExamples`]."""
    options: dict[str, Any] = {
        "size": args.draws_per_pair * len(pairs),
        "seed": args.seed,
        "shares": (args.none_share, args.right_share, args.wrong_share),
        "tempting_share": args.tempting_share,
        "blind_share": args.blind_share,
        "task_weights": args.task_weights,
        "augment": augment if args.augment_pictures else None,
    }
    return MatchExamples(pairs, **(options | overrides))


def save_evaluator(trainer: EvaluatorTrainer, folder: Path, measured: dict[str, float]) -> None:
    """Save the model with its processor, its prompt, and what was measured."""
    trainer.model.eval().save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    as_new(folder.glob("*.safetensors"))
    prompt = EvaluatorPrompt.load(trainer.args.prompt)
    (folder / PROMPT_FILE).write_text(prompt.text + "\n", encoding="utf-8")
    (folder / "evaluator.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


class ExampleCollator:
    """Makes complete prompts of examples, padded on the left, `labels` `(B,)` and `kinds` `(B,)` as in `KINDS`."""

    def __init__(self, renderer: PromptRenderer) -> None:
        self.renderer = renderer

    def __call__(self, examples: Sequence[MatchExample]) -> dict[str, Any]:
        renderer = self.renderer
        heads = renderer.heads([(example["query"], example["target"]) for example in examples])
        suffixes = [renderer.suffix(example["rationale"], example["side"]) for example in examples]
        batch = append_tokens(heads, suffixes, renderer.processor.tokenizer.pad_token_id, padding_side="left")
        batch["labels"] = torch.tensor([float(example["label"]) for example in examples])
        batch["kinds"] = torch.tensor([KINDS.index(example["kind"]) for example in examples])
        return batch
