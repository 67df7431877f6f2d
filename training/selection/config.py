"""Configure how rationales are selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmemb_r1.rationale_tokens import INTERVENTIONS
from mmemb_r1.training.selection.gain import SPACES

SELECTIONS = ("none", "absolute", "counterfactual")
_CHOICES = {"selection": SELECTIONS, "intervention": INTERVENTIONS, "space": SPACES}


@dataclass(frozen=True)
class SelectionOptions:
    """
    Configures how rationales are selected.

    `intervention`, `num_negatives` and `seed` determine what the evaluator is asked; the others are applied to its
    answers, and can be changed without asking it again.

    Args:
        selection: `"counterfactual"` keeps rationales that gain more than `margin` over the intervention,
            `"absolute"` those with which the pair matches by more than `margin` (there is no baseline), `"none"` all,
            with equal weights. Default: counterfactual.
        wrong_pair_correction: whether what the rationale does for wrong pairs is subtracted. Default: yes.
        intervention: the baseline: `"drop"` no rationale, `"swap"` another input's of the same task, side and worker,
            `"shuffle"` its own words in random order. Default: drop.
        space: `"probability"` or `"log-odds"`, in which gains are taken. Default: probability.
        margin: Default: 0; for absolute selection without the wrong-pair correction, what is as likely as not: 0.5
            in probability, 0 in log-odds.
        temperature: of the posterior, a softmax over the kept gains. Default: 0.1 in probability, 1 in
            log-odds.
        num_negatives: wrong pairs that every rationale is tried on. Default: 4.
        seed: of the draws of negatives, swaps and shuffles. Default: 0.

    Raises:
        ValueError: if a value is not allowed.
    """

    selection: str = "counterfactual"
    wrong_pair_correction: bool = True
    intervention: str = "drop"
    space: str = "probability"
    margin: float | None = None
    temperature: float | None = None
    num_negatives: int = 4
    seed: int = 0

    def __new__(cls, *args: Any, **fields: Any) -> SelectionOptions:
        if "pair_aware" in fields:
            raise ValueError("`pair_aware` is called `wrong_pair_correction` now; its values mean the same.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(map(repr, allowed))}")
        if self.margin is not None and not abs(self.margin) < float("inf"):
            raise ValueError(f"margin={self.margin}; allowed: a finite number")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}; allowed: a finite number above 0")
        if self.num_negatives < 0 or (self.wrong_pair_correction and self.num_negatives == 0):
            raise ValueError(
                f"num_negatives={self.num_negatives}; allowed: 1 or more, or 0 with wrong_pair_correction=False"
            )

    @property
    def margin_used(self) -> float:
        """Return the margin, or its default.

        >>> SelectionOptions().margin_used, SelectionOptions("absolute", wrong_pair_correction=False).margin_used
        (0.0, 0.5)
        """
        if self.margin is not None:
            return self.margin
        is_confidence = self.selection == "absolute" and not self.wrong_pair_correction
        return 0.5 if is_confidence and self.space == "probability" else 0.0

    @property
    def temperature_used(self) -> float:
        """Return the temperature, or its default.

        >>> SelectionOptions().temperature_used, SelectionOptions(space="log-odds").temperature_used
        (0.1, 1.0)
        """
        if self.temperature is not None:
            return self.temperature
        return 0.1 if self.space == "probability" else 1.0
