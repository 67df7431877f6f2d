"""Compute log-probabilities of completions: the gate's for decisions, the language model's for rationales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmemb_r1.modeling.backbones_mmemb_r1 import is_per_token, join_batches
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Output
from mmemb_r1.modeling.paths_mmemb_r1 import chosen_places, reading_places


class PolicyForward:
    """
    Take the model's place in TRL's pass over completions, which asks for fused log-probabilities.

    The model is called as it is, wrapped or not, and once: what it returns is kept in `outputs`. The temperature is
    that of gate and tokens when rollouts are drawn.

    Args:
        model: the model.
        config: its config.
        temperature: of gate and tokens.
        prompts: the prompt of each row, in the order in which TRL goes through them, rendered alone: from it, and not
            from TRL, the model gets media and token types then.
    """

    def __init__(
        self, model: nn.Module, config: Any, temperature: float, prompts: Sequence[Mapping[str, Tensor]] | None = None
    ) -> None:
        self.model, self.config, self.temperature = model, config, temperature
        self._prompts = None if prompts is None else iter(prompts)
        self.outputs: list[MMEmbR1Output] = []

    def __call__(self, input_ids: Tensor, labels: Tensor, fused_lm_head: bool = True, **inputs: Any) -> Any:
        """
        Compute `log_probs` and `entropy`, `(B, S)` float32, of each token of a completion; 0 for `<|embed|>`.

        Args:
            input_ids, labels: `(B, S)` prompts and completions; labels are -100 except in completions.
            fused_lm_head: ignored.
            **inputs: attention mask and media; of a part of a batch without pictures, whose tensors TRL leaves empty,
                the model gets none.
        """
        inputs = {name: value for name, value in inputs.items() if not isinstance(value, Tensor) or len(value)}
        if self._prompts is not None:
            inputs |= prompt_inputs([next(self._prompts) for _ in input_ids], input_ids, inputs["attention_mask"])
        check_token_types(input_ids, inputs, self.config.vlm_config)
        markers = reading_places(self.config, input_ids, inputs["attention_mask"])  # (B, S)
        decisions = nn.functional.pad(markers[:, :-1], (1, 0)) & (labels != -100)
        in_rationale = (labels != -100) & chosen_places(self.config, markers)
        output = self.model(
            input_ids=input_ids,
            labels=input_ids.masked_fill(~in_rationale, -100),
            detach_gate=True,
            sampling_temperature=self.temperature,
            **inputs,
        )
        self.outputs.append(output)
        path = (markers.long().cumsum(dim=1) - 1).clamp(min=0)  # (B, S), rationales before a token
        logits = output.gate_logits.gather(1, path) / self.temperature  # (B, S)
        chosen = decision_logps(logits, input_ids == self.config.opening_ids[0])
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").detach()
        zeros = torch.zeros_like(chosen)
        return SimpleNamespace(
            log_probs=torch.where(decisions, chosen, zeros.masked_scatter(in_rationale, output.rationale_logps)),
            entropy=torch.where(decisions, entropy, zeros.masked_scatter(in_rationale, output.rationale_entropies)),
        )


def prompt_inputs(prompts: Sequence[Mapping[str, Tensor]], input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """
    Join what belongs to prompts beside their ids, for a batch of completions of them.

    Each row brings its own media, whatever form a backbone's processor gives them: no batch of media is ever cut.

    Args:
        prompts: B batches of one prompt each, from [`~mmemb_r1.modeling.rendering_mmemb_r1.render`].
        input_ids, mask: `(B, S)` prompts, padded on the left, and completions, padded on the right.

    Returns:
        The media; and what belongs to tokens, `(B, S)`, 0 at completions and padding.
    """
    width, rows = input_ids.shape[1], []
    for row, (prompt, start) in enumerate(zip(prompts, mask.argmax(dim=1).tolist(), strict=True)):
        ids = prompt["input_ids"]  # (1, P)
        around = (start, width - start - ids.shape[1])
        own = {name: pad(value, around) if is_per_token(value, ids) else value for name, value in prompt.items()}
        rows.append({**own, "input_ids": input_ids[row : row + 1]})
    joined = join_batches(rows, 0)  # all have the same width: nothing is filled up
    return {name: value for name, value in joined.items() if name not in ("input_ids", "attention_mask")}


def decision_logps(logits: Tensor, thinks: Tensor) -> Tensor:
    """
    Compute log-probabilities of decisions `(...)` from gate logits: softmax([0, logit]) over stopping and reasoning.

    >>> decision_logps(torch.zeros(2), torch.tensor([True, False])).exp().tolist()
    [0.5, 0.5]
    """
    return nn.functional.logsigmoid(torch.where(thinks, logits, -logits))


@contextmanager
def padded_left(tokenizer: Any) -> Iterator[None]:
    """
    Make a tokenizer pad on the left for the length of a block.

    TRL pads prompts on the left itself, but takes the token types of pictures from the processor, padded as its
    tokenizer happens to be set.
    """
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def check_token_types(input_ids: Tensor, inputs: Mapping[str, Any], backbone: Any) -> None:
    """
    Check that the types of tokens, which say where pictures and videos are, belong to these ids.

    Args:
        input_ids: `(B, S)`.
        inputs: what else the model is given.
        backbone: the backbone's config, with the ids that stand for pictures and for videos.

    Raises:
        ValueError: if they do not; rotary positions would be wrong without another error.
    """
    for name in {"token_type_ids", "mm_token_type_ids"}.intersection(inputs):
        for kind, number in (("image", 1), ("video", 2)):
            token_id = getattr(backbone, f"{kind}_token_id", None)
            if token_id is not None and bool(((inputs[name] == number) != (input_ids == token_id)).any()):
                medium = {"image": "pictures", "video": "videos"}[kind]
                raise ValueError(
                    f"{name} marks other tokens as {medium} than those with id {token_id}: it was padded or cut in "
                    "another way than the ids. Take both from one call of the processor."
                )
