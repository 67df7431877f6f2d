"""Run the shortcut test of one task: the model's own rationales, and its vectors after those and after others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.diagnose.rationales import Thought, own_thoughts, shuffled_thought, written_thought
from mmemb_r1.evaluation.diagnose.verdict import read_trials, write_trials
from mmemb_r1.evaluation.encoders import DOCUMENT, QUERY, AdaptiveEncoder, embed_all
from mmemb_r1.evaluation.run_folder import Columns, RunFolder, rows_path, task_digest
from mmemb_r1.evaluation.scoring import CandidateVectors, score_queries
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.statistics import numbered
from mmemb_r1.evaluation.tasks import RetrievalTask, clusters_of, some_queries
from mmemb_r1.rationale_tokens import swap_donors
from mmemb_r1.runs import step_of
from mmemb_r1.seeding import seeded_random

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class ShortcutSettings:
    """
    How a model is tested: what makes two tests of it two.

    Args:
        seed: of the swaps, the shuffles and the choice of queries; defaults to 0.
        max_queries: of a task at most, drawn by the seed. Default: all.
        batch_size: inputs that are read at once; defaults to 64.
        max_reasoning_tokens: budget of one rationale. Default: the checkpoint's.
        max_reasoning_rounds: how often one input may think. Default: the checkpoint's.

    Raises:
        ValueError: if a number is below 1.
    """

    seed: int = 0
    max_queries: int | None = None
    batch_size: int = 64
    max_reasoning_tokens: int | None = None
    max_reasoning_rounds: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_queries", "batch_size", "max_reasoning_tokens", "max_reasoning_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is needed")

    def encoding(self) -> Settings:
        """How queries and candidates are embedded."""
        return Settings(
            modes=("always",),
            batch_size=self.batch_size,
            max_reasoning_tokens=self.max_reasoning_tokens,
            max_reasoning_rounds=self.max_reasoning_rounds,
        )


ROWS_NAME = "shortcut"
# How far the vector after the own rationale, read in one pass, may lie from that of `encode`, which decoded it.
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
ROUGH_TOLERANCE = 0.1  # in half precision
Vectors = npt.NDArray[np.float32]


class ShortcutTester:
    """
    Tests a model task by task.

    Args:
        model: an [`MMEmbR1`].
        settings: how.
        folder: where rows are kept and found again. `None`: nowhere.
        bar: shows how far it is.
    """

    def __init__(self, model: Any, settings: ShortcutSettings, folder: RunFolder | None, bar: Progress) -> None:
        self.model, self.settings, self.folder, self.bar = model, settings, folder, bar
        self.candidates = CandidateVectors()

    def measure(self, task: RetrievalTask) -> Columns:
        """The rows of a task: what is not in the folder is measured, and kept there."""
        task = drawn_queries(task, self.settings.max_queries, self.settings.seed)
        if self.folder is None:
            return self._measure(task)
        self.folder.begin(task, task_digest(task))
        path = rows_path(self.folder.folder, task.name, ROWS_NAME)
        if not path.is_file():
            write_trials(path, self._measure(task))
        return read_trials(path)

    def _measure(self, task: RetrievalTask) -> Columns:
        candidates = self.candidates.of(task, self._candidates)
        prompt = query_prompt(self.model, task)
        with step_of(self.bar, f"{task.name} thoughts", len(task.query_ids)) as advance:
            thoughts = own_thoughts(
                self.model,
                task.queries,
                prompt=prompt,
                batch_size=self.settings.batch_size,
                options=self.settings.encoding().reasoning_options(),
                advance=advance,
            )
        own, direct = self._forced(task, "own", [thought.ids for thought in thoughts], prompt)
        check_forced(task, own, np.stack([thought.embedding for thought in thoughts]), self._tolerance())
        donors = donors_of(task, thoughts, self.settings.seed)
        columns: Columns = {
            "query_id": np.array(task.query_ids, dtype=object),
            "cluster": np.array(clusters_of(task), dtype=object),
            "rationale": np.array(["\n".join(thought.texts) for thought in thoughts], dtype=object),
            "donor": np.array([task.query_ids[row] if row >= 0 else None for row in donors], dtype=object),
            "score": score_queries(task, own, candidates).metrics[task.metric],
            "num_reasoning_tokens": np.array([thought.num_tokens for thought in thoughts], dtype=np.float64),
            "cosine_between_queries": np.where(donors >= 0, (own * own[donors]).sum(axis=1), np.nan),
        }
        for name, suffixes in self._suffixes(thoughts, donors).items():
            rows = [row for row, suffix in enumerate(suffixes) if suffix is not None]
            vectors = own.copy()
            if name == "drop":
                vectors = direct
            elif rows:
                vectors[rows] = self._forced(task, name, suffixes, prompt)[0]
            changed = np.isin(np.arange(len(own)), rows)
            score = score_queries(task, vectors, candidates).metrics[task.metric]
            columns[f"score_{name}"] = np.where(changed, score, np.nan)
            columns[f"cosine_{name}"] = np.where(changed, (own * vectors).sum(axis=1), np.nan)
        return columns

    def _suffixes(
        self, thoughts: Sequence[Thought], donors: npt.NDArray[np.int64]
    ) -> dict[str, list[list[int] | None]]:
        """Intervention -> what each query is to think instead; `None` where that is its own thought."""
        seed = self.settings.seed
        orders = [shuffled_thought(thought.texts, seed) for thought in thoughts]
        empty = written_thought(self.model, [""])
        return {
            "drop": [[] for _ in thoughts],
            "empty": [empty if thought.ids != empty else None for thought in thoughts],
            "swap": [thoughts[row].ids if row >= 0 else None for row in donors],
            "shuffle": [
                written_thought(self.model, order) if order != tuple(map(_one_spaced, thought.texts)) else None
                for thought, order in zip(thoughts, orders, strict=True)
            ],
        }

    def _forced(
        self, task: RetrievalTask, name: str, suffixes: Sequence[list[int] | None], prompt: str | None
    ) -> tuple[Vectors, Vectors]:
        """Last and direct vectors `(n, D)` of the queries that have a suffix."""
        from mmemb_r1.rationale_tokens import forced_embeddings

        chosen = [(task.queries[row], suffix) for row, suffix in enumerate(suffixes) if suffix is not None]
        with step_of(self.bar, f"{task.name} {name}", len(chosen)) as advance:
            forced = forced_embeddings(
                self.model,
                [query for query, _ in chosen],
                [suffix for _, suffix in chosen],
                prompt=prompt,
                batch_size=self.settings.batch_size,
                advance=advance,
            )
        return forced.last.numpy(), forced.direct.numpy()

    def _candidates(self, task: RetrievalTask) -> Vectors:
        """Direct vectors `(C, D)`."""
        with step_of(self.bar, f"{task.name} candidates", len(task.candidates)) as advance:
            return embed_all(
                AdaptiveEncoder(self.model, self.settings.encoding()),
                task.candidates,
                side=DOCUMENT,
                reasoning="never",
                batch_size=self.settings.batch_size,
                prompt=task.candidate_prompt,
                ids=task.candidate_ids,
                advance=advance,
            ).embeddings

    def _tolerance(self) -> float:
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return TOLERANCE.get(dtype, ROUGH_TOLERANCE)


def drawn_queries(task: RetrievalTask, most: int | None, seed: int) -> RetrievalTask:
    """The task with so many of its queries at most, drawn by the seed, in their order."""
    if most is None or len(task.query_ids) <= most:
        return task
    stream = seeded_random(seed, "queries", task.name)
    return some_queries(task, sorted(stream.sample(range(len(task.query_ids)), most)))


def query_prompt(model: Any, task: RetrievalTask) -> str | None:
    """The instruction of a task's queries that have none of their own: the task's, or what the model saved for it."""
    if task.query_prompt is not None:
        return task.query_prompt
    saved = getattr(model, "prompts", None) or {}
    return saved.get(QUERY) or saved.get(getattr(model, "default_prompt_name", None)) or None


def donors_of(task: RetrievalTask, thoughts: Sequence[Thought], seed: int) -> npt.NDArray[np.int64]:
    """
    `(Q,)` for each query another one of its task that thought in other words and has other right candidates; -1 where
    there is none.
    """
    anchors = np.stack(
        [numbered([thought.texts for thought in thoughts]), numbered([frozenset(one) for one in task.relevance])],
        axis=1,
    )  # (Q, 2)
    names = [f"{task.name}/{query}" for query in task.query_ids]
    return swap_donors(np.zeros(len(thoughts), dtype=np.int64), anchors, names, seed)


def check_forced(task: RetrievalTask, forced: Vectors, decoded: Vectors, tolerance: float) -> None:
    """
    Compare vectors `(Q, D)` after the same rationale, forced and decoded.

    Raises:
        ValueError: if two lie further apart than the tolerance.
    """
    distance = np.linalg.norm(forced - decoded, axis=1)  # (Q,)
    if not (distance <= tolerance).all():
        row = int(np.argmax(np.nan_to_num(distance, nan=np.inf)))
        raise ValueError(
            f"{task.name}: after its own rationale the query {task.query_ids[row]!r} has another vector when the "
            f"rationale is forced than when the model decodes it, {distance[row]:.2g} away (allowed: {tolerance:g}), "
            "so other rationales can't be forced on this model either. Modules after the first one, or a prompt that "
            "only `encode` knows, would explain it."
        )


def _one_spaced(text: str) -> str:
    return " ".join(text.split())
