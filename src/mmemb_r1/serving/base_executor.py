"""Hold what executors of a model have in common: the limits of an input, and the answers of rows that are done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmemb_r1.encoding import DECODED_PER_READ
from mmemb_r1.modeling.paths_mmemb_r1 import round_ids
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReadBatch
from mmemb_r1.modeling.second_look_mmemb_r1 import look_again
from mmemb_r1.modeling.states_mmemb_r1 import RationaleState
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.executor import Answer, Row
from mmemb_r1.serving.preparing import Preparation


@dataclass(eq=False)
class ThinkingRow:
    """Hold a row that thinks, and what reading it gave."""

    row: Row
    state: RationaleState
    direct: Tensor
    gate_prob: float
    prompt_tokens: int


class BaseExecutor:
    """
    Know a model's limits, and make answers of what came out for its rows.

    Args:
        model: the [`MMEmbR1`].
        max_input_tokens: of one input; more is an error of that input.
        decode_batch_size: rows that think at once.
        allow_remote_media: whether pictures and videos may be web addresses.
    """

    def __init__(
        self,
        model: MMEmbR1,
        *,
        max_input_tokens: int,
        decode_batch_size: int = 32 * DECODED_PER_READ,
        allow_remote_media: bool = False,
    ) -> None:
        self.model = model.eval()
        self.decode_batch_size = decode_batch_size
        module = model[0]
        self.preparation = Preparation(module.processor, module.model.config, max_input_tokens, allow_remote_media)
        self.media = self.preparation.media
        self._thinkers: dict[Row, ThinkingRow] = {}

    @property
    def thinking(self) -> int:
        return len(self._thinkers)

    @property
    def room(self) -> int:
        return max(self.decode_batch_size - self.thinking, 0)

    def rationale(self, answer: Answer) -> str:
        rounds = round_ids(self.model[0].model.config, answer.rationale_ids)
        return "\n".join(self.model.tokenizer.decode(one).strip() for one in rounds)

    def close(self) -> None:
        """End nothing: there is nothing of its own."""

    def _sorted_out(
        self, rows: Sequence[Row], read: ReadBatch, lengths: Sequence[int]
    ) -> tuple[list[ThinkingRow], list[tuple[Row, Answer]]]:
        """
        Tell rows that were read apart.

        Args:
            rows: the rows.
            read: what reading gave.
            lengths: tokens of each prompt.

        Returns:
            Those that are about to think, and the others with their answers.
        """
        gate_prob = read.gate_prob.float().tolist()
        thinkers = [
            ThinkingRow(rows[at], state, read.direct[at].clone(), gate_prob[at], lengths[at])
            for at, state in read.states.items()
        ]
        done = [at for at in range(len(rows)) if at not in read.states]
        vectors = self._finished(read.direct[done]) if done else []
        return thinkers, [
            (
                rows[at],
                Answer(vector, gate_prob[at], lengths[at], second_look_weight=0.0 if rows[at].options.looks else None),
            )
            for at, vector in zip(done, vectors, strict=True)
        ]

    def _leaving(self, leaving: Sequence[ThinkingRow], stopped: bool = False) -> list[tuple[Row, Answer]]:
        """Answer rows that think with the last vector that each has, and let go of them."""
        if not leaving:
            return []
        for thinker in leaving:
            del self._thinkers[thinker.row]
        last = [thinker.state.embeddings[-1] if thinker.state.embeddings else thinker.direct for thinker in leaving]
        kept = [0.0 if thinker.state.look is not None else None for thinker in leaving]
        if looking := [at for at, one in enumerate(leaving) if one.state.look is not None and one.state.embeddings]:
            states, gate_prob = [leaving[at].state for at in looking], [leaving[at].gate_prob for at in looking]
            mixed, weights = look_again(self.model[0].model.config, states, torch.tensor(gate_prob))
            for at, vector, weight in zip(looking, mixed, weights.tolist(), strict=True):
                last[at], kept[at] = vector, weight
        vectors = self._finished(torch.stack([vector.to(last[0].dtype) for vector in last]))
        return list(self._answers(leaving, vectors, kept, stopped))

    def _answers(
        self,
        leaving: Sequence[ThinkingRow],
        vectors: Iterable[np.ndarray],
        kept: Sequence[float | None],
        stopped: bool,
    ) -> Iterator[tuple[Row, Answer]]:
        config = self.model[0].model.config
        for thinker, vector, weight in zip(leaving, vectors, kept, strict=True):
            yield (
                thinker.row,
                Answer(
                    vector,
                    thinker.gate_prob,
                    thinker.prompt_tokens,
                    rounds=len(thinker.state.embeddings),
                    reasoning_tokens=thinker.state.num_tokens,
                    rationale_ids=tuple(thinker.state.rationale_ids(config)),
                    stopped=stopped,
                    second_look_weight=weight,
                ),
            )

    def _finished(self, embeddings: Tensor) -> Iterable[np.ndarray]:
        """Make vectors `(N, D)` of the adaptive model those of the whole model, in memory."""
        features: dict[str, Any] = {"sentence_embedding": embeddings}
        for module in list(self.model.children())[1:]:
            features = module(features)
        return features["sentence_embedding"].float().cpu().numpy()
