"""Candidate sets embedded once, for queries whose vectors come from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.encoders.adaptive import Explains
from mmemb_r1.evaluation.encoders.encoder import DOCUMENT
from mmemb_r1.evaluation.encoders.factory import encoder_of
from mmemb_r1.evaluation.encoders.parts import embed_all
from mmemb_r1.evaluation.metrics import cosine_scores, ranks
from mmemb_r1.evaluation.run.scoring import TIE_TOLERANCE
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks.atlas import candidate_inputs, places

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CandidateSet:
    """The answers that compete: candidate id -> row of `embeddings` `(C, D)`."""

    rows: dict[str, int]
    embeddings: npt.NDArray[np.float32]

    def ranks(self, queries: npt.NDArray[np.float32], target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Rank `(Q,)` of each query's target, for queries `(Q, D)`."""
        return ranks(cosine_scores(queries, self.embeddings), self.places(target_ids), tolerance=TIE_TOLERANCE)

    def places(self, target_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Row `(Q,)` of each target among the candidates."""
        return places(self.rows, target_ids)


def embed_candidates(
    model: Explains, candidates: Dataset, names: set[str], batch_size: int = 64, reasoning: str = "never"
) -> dict[str, CandidateSet]:
    """
    Embed the candidates of the named sets, directly by default.

    Raises:
        ValueError: if a set is empty or holds a candidate twice.
    """
    settings = Settings(modes=("never",), document_reasoning=reasoning, batch_size=batch_size)
    encoder, sets = encoder_of(model, settings), {}
    for name, answers in candidate_inputs(candidates, names).items():
        embedded = embed_all(
            encoder, answers.inputs, side=DOCUMENT, reasoning=reasoning, batch_size=batch_size, ids=list(answers.rows)
        )
        sets[name] = CandidateSet(answers.rows, embedded.embeddings)
    return sets
