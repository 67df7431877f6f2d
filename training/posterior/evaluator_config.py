"""Arguments of the evaluator's training."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl.trainer.base_config import _BaseConfig


@dataclass
class EvaluatorConfig(_BaseConfig):
    """
    Configuration of [`EvaluatorTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    An evaluator is needed where no ready one is at hand: a strong chat model judges pairs without any training.

    Args:
        prompt (`str`, *optional*, defaults to `"evaluator"`):
            The words around a pair: `"evaluator"`, `"evaluator-short"` (for tiny models) or a text file.
        none_share (`float`, *optional*, defaults to `0.25`):
            How often an example has no rationale, relative to the other two.
        right_share (`float`, *optional*, defaults to `0.45`):
            How often it has its own rationale.
        wrong_share (`float`, *optional*, defaults to `0.3`):
            How often it has the rationale of another pair of its task.
        tempting_share (`float`, *optional*, defaults to `0.5`):
            How often a pair that does not match beside a wrong rationale is the one that this rationale speaks of.
        blind_share (`float`, *optional*, defaults to `0.0`):
            How often the pictures that a right rationale is about are hidden, where there is text beside them. What
            can't be seen has to be read: without it a small model that sees well learns to overlook rationales.
        draws_per_pair (`int`, *optional*, defaults to `8`):
            Examples of an epoch per pair of the table.
        task_weights (`dict[str, float]`, *optional*):
            How often each task is drawn. `None` draws tasks by their number of pairs. Tasks that are not named are not
            drawn.
        augment_pictures (`bool`, *optional*, defaults to `False`):
            Whether every picture is shifted, scaled, turned and recoloured a little, anew for each example.
        max_text_tokens (`int`, *optional*):
            The text of an input is cut to so many tokens. `None`: never.
    """

    prompt: str = field(default="evaluator", metadata={"help": "The words around a pair."})
    none_share: float = field(default=0.25, metadata={"help": "Share of examples without a rationale."})
    right_share: float = field(default=0.45, metadata={"help": "Share of examples with their own rationale."})
    wrong_share: float = field(default=0.3, metadata={"help": "Share of examples with another pair's rationale."})
    tempting_share: float = field(default=0.5, metadata={"help": "Share of wrong rationales that speak of the pair."})
    blind_share: float = field(default=0.0, metadata={"help": "Share of rationales whose pictures are hidden."})
    draws_per_pair: int = field(default=8, metadata={"help": "Examples of an epoch per pair of the table."})
    task_weights: dict | None = field(default=None, metadata={"help": "How often each task is drawn."})
    augment_pictures: bool = field(default=False, metadata={"help": "Vary every picture a little."})
    max_text_tokens: int | None = field(default=None, metadata={"help": "Longest text of an input."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep columns for the collator."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("none_share", "right_share", "wrong_share", "tempting_share", "blind_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} has to be 0 or more.")
        if not self.none_share > 0:
            raise ValueError("none_share=0: an evaluator has to know what it thinks without a rationale.")
        if self.draws_per_pair < 1:
            raise ValueError(f"draws_per_pair={self.draws_per_pair} has to be at least 1.")
