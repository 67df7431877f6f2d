"""Arguments of the joint phase."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl.trainer.base_config import _BaseConfig


@dataclass
class JointConfig(_BaseConfig):
    """
    Configuration of [`JointTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    `per_device_train_batch_size` counts pairs, and is the number of candidates of every query.

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
        use_rationales (`bool`, *optional*, defaults to `True`):
            Whether rationales are trained on; `False` trains the direct path alone (the ablation and baseline).
        matryoshka_dims (`list[int]`, *optional*):
            Dimensions at which the contrastive terms are taken as well, each with the same weight as the full one.
        sub_batch_size (`int`, *optional*, defaults to `8`):
            Pairs of one task that stand together in a batch, so that negatives are of the kind they are told apart
            from.
        task_weights (`dict[str, float]`, *optional*):
            How often each task is drawn, relative to the others. `None` draws tasks by their number of pairs. Tasks
            that are not named are not drawn.
        num_length_chunks (`int`, *optional*, defaults to `2`):
            Each side of a batch is split by length into so many forward passes, which saves padding.
        max_rationale_tokens (`int`, *optional*, defaults to `256`):
            Longer rationales are refused, not cut: a cut rationale teaches to stop in the middle.
    """

    temperature: float = field(default=0.02, metadata={"help": "Divides the cosine similarities."})
    direct_direct_weight: float = field(default=1.0, metadata={"help": "Weight of direct query vs direct target."})
    reasoned_direct_weight: float = field(default=1.0, metadata={"help": "Weight of reasoned query vs direct target."})
    direct_reasoned_weight: float = field(default=0.5, metadata={"help": "Weight of direct query vs reasoned target."})
    reasoned_reasoned_weight: float = field(
        default=0.5, metadata={"help": "Weight of reasoned query vs reasoned target."}
    )
    rationale_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on rationale tokens."})
    use_rationales: bool = field(default=True, metadata={"help": "Train on rationales; False: direct path only."})
    matryoshka_dims: list[int] | None = field(default=None, metadata={"help": "Further dimensions of the loss."})
    sub_batch_size: int = field(default=8, metadata={"help": "Pairs of one task that stand together."})
    task_weights: dict | None = field(default=None, metadata={"help": "How often each task is drawn."})
    num_length_chunks: int = field(default=2, metadata={"help": "Forward passes per side, each of similar lengths."})
    max_rationale_tokens: int = field(default=256, metadata={"help": "Longest allowed rationale."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Keep columns for the collator."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} has to be positive.")
        if self.sub_batch_size < 1 or self.per_device_train_batch_size % self.sub_batch_size:
            raise ValueError(
                f"sub_batch_size={self.sub_batch_size} has to divide per_device_train_batch_size="
                f"{self.per_device_train_batch_size}."
            )

    @property
    def path_weights(self) -> dict[tuple[int, int], float]:
        """Weight per (query path, target path); 0 is direct, 1 reasoned."""
        return {
            (0, 0): self.direct_direct_weight,
            (1, 0): self.reasoned_direct_weight,
            (0, 1): self.direct_reasoned_weight,
            (1, 1): self.reasoned_reasoned_weight,
        }
