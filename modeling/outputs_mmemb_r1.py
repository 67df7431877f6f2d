"""Define what the model's methods return."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class MMEmbR1Output(ModelOutput):
    """
    Result of one forward pass over complete sequences. `K` is the largest number of `<|embed|>` in a row.

    Attributes:
        embeddings: `(B, K, D)`, one vector per `<|embed|>`: the direct one, then one per rationale. Slots that a row
            did not reach repeat its last one.
        path_mask: `(B, K)` bool, which of them exist.
        gate_logits: `(B, K)` logit of thinking (again) at each `<|embed|>`; filled up likewise.
        gate_inputs: `(B, K, G)` what the gate read there, without gradient.
        rationale_logps: `(N,)` log-probabilities of the labelled tokens, row by row; only with `labels`.
        rationale_entropies: `(N,)` entropies in nats of what they were drawn from, without gradient; only with
            `sampling_temperature`.
        last_hidden_state: `(B, S, H)`.
        hidden_states, attentions: those of the backbone's layers; only with `output_hidden_states=True` and
            `output_attentions=True`.
    """

    embeddings: Tensor | None = None
    path_mask: Tensor | None = None
    gate_logits: Tensor | None = None
    gate_inputs: Tensor | None = None
    rationale_logps: Tensor | None = None
    rationale_entropies: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MMEmbR1EmbedOutput(ModelOutput):
    """
    Result of [`MMEmbR1Model.embed`]; every tensor has the batch first.

    Attributes:
        embeddings: `(B, D)` float32, the last vector of each row.
        gate_prob: `(B,)` probability of thinking at the first `<|embed|>`.
        reasoned: `(B,)` bool, whether the row thought.
        num_reasoning_rounds: `(B,)` number of rationales.
        num_reasoning_tokens: `(B,)` rationale tokens of all rounds.
        num_forced_closings: `(B,)` rationales that were truncated because their budget was spent.
        rationale_ids: `(B, T)` ids of the rationales, filled up with -1. Rounds are separated by the control tokens
            between them.
        all_embeddings: `(B, max_reasoning_rounds + 1, D)` (with `reasoning="never"`: `(B, 1, D)`), the vector after k
            rationales in slot k; slots that a row did not reach repeat its last one. Only with
            `output_all_embeddings=True`. The second look changes none of them.
        second_look_weight: `(B,)` how much of a row's vector is that after its rationales, the rest is its direct one;
            0 where the row did not think. Only with a second look.
    """

    embeddings: Tensor | None = None
    gate_prob: Tensor | None = None
    reasoned: Tensor | None = None
    num_reasoning_rounds: Tensor | None = None
    num_reasoning_tokens: Tensor | None = None
    num_forced_closings: Tensor | None = None
    rationale_ids: Tensor | None = None
    all_embeddings: Tensor | None = None
    second_look_weight: Tensor | None = None
