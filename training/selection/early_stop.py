"""Ask an evaluator about wrong pairs only of rationales that can still be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import PairEvaluator, Trial, TrialError


@dataclass
class EarlyStop:
    """
    Asks an evaluator about the matching pair first, and about wrong pairs only for those rationales that help it.

    A rationale after which the matching pair is no likelier than without one has a gain of at most 0, in any space.
    The wrong-pair correction only ever lowers a gain, so that such a rationale is not kept whatever the wrong pairs
    say: these are not asked. What is kept, and with which weight, is the same as without this; of the others, the
    gain in the tables is that before the correction.

    This holds for counterfactual selection against no rationale with a margin of 0 or more; see `check_early_stop`.

    Args:
        evaluator: whom to ask.
    """

    evaluator: PairEvaluator

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the answers: the evaluator's, and that some are left out."""
        return {**self.evaluator.definition, "early_stop": True}

    @property
    def reading(self) -> Any:
        """That of the evaluator, if it has one."""
        return getattr(self.evaluator, "reading", None)

    @property
    def context_length(self) -> int | None:
        """That of the evaluator, if it has one."""
        return getattr(self.evaluator, "context_length", None)

    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """
        See [`PairEvaluator.match_logits`]; NaN stands for the wrong pairs of a rationale that was given up.

        The first rationale of each trial has to be `None`, as it is in those of `select_rationales`.
        """
        own = self.evaluator.match_logits([replace(trial, others=trial.others[:1]) for trial in trials])
        left = [helpful(logits[0]) for logits in own]  # columns
        wrong = {
            number: replace(trial, others=trial.others[1:], rationales=[trial.rationales[at] for at in columns])
            for number, (trial, columns) in enumerate(zip(trials, left, strict=True))
            if len(trial.others) > 1
        }
        try:
            answers = dict(zip(wrong, self.evaluator.match_logits(list(wrong.values())), strict=True))
        except TrialError as error:
            raise TrialError(list(wrong)[error.index], error.reason) from error
        results = []
        for number, trial in enumerate(trials):
            logits = torch.full((len(trial.others), len(trial.rationales)), torch.nan)
            logits[:1] = own[number]
            if number in answers:
                logits[1:, left[number]] = answers[number]
            results.append(logits)
        return results


def helpful(logits: Tensor) -> list[int]:
    """
    List the columns of a matching pair's logits that are above that of no rationale, the first one, and that one.

    >>> helpful(torch.tensor([0.5, 0.4, 0.5, 0.7]))
    [0, 3]
    """
    return [0, *((logits[1:] > logits[0]).nonzero().flatten() + 1).tolist()]


def check_early_stop(evaluator: PairEvaluator, options: SelectionOptions) -> None:
    """
    Refuse options with which a rationale could be kept that an [`EarlyStop`] gives up.

    Raises:
        ValueError: saying which.
    """
    if not isinstance(evaluator, EarlyStop):
        return
    wanted = {"selection": "counterfactual", "intervention": "drop"}
    wrong = [f"{name}={getattr(options, name)!r}" for name, value in wanted.items() if getattr(options, name) != value]
    if options.margin_used < 0:
        wrong.append(f"margin={options.margin_used}")
    if wrong:
        raise ValueError(
            f"early_stop gives up rationales that {', '.join(wrong)} could keep; allowed: counterfactual selection, "
            "the intervention 'drop' and a margin of 0 or more. Leave early_stop out, or change these."
        )
