"""Run the shortcut test on retrieval tasks: the model's own rationales, then others in their place."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.diagnose.verdict import KINDS, join_outcomes, read_outcomes, summarise_outcomes
from mmemb_r1.evaluation.encoders import QUERY, AdaptiveEncoder, in_parts
from mmemb_r1.evaluation.run_folder import Columns, RunFolder, rows_path, save_results, task_digest, write_columns
from mmemb_r1.evaluation.runner import TaskRunner, in_turn, versions
from mmemb_r1.evaluation.scoring import score_queries
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.statistics import number_names
from mmemb_r1.evaluation.tasks import RetrievalTask, TaskSource, clusters_of, members_of, some_queries
from mmemb_r1.modeling.paths_mmemb_r1 import round_ids, suffix_of_ids
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.rationale_tokens import forced_embeddings, rationale_suffix, shuffled, swap_donors
from mmemb_r1.seeding import seeded_random

if TYPE_CHECKING:
    from rich.progress import Progress


logger = logging.getLogger(__name__)
FORMAT = 1
RESULT_FILE = "shortcut.json"


@dataclass(frozen=True)
class ShortcutSettings:
    """
    Says how a model is tested: what makes two tests of it two.

    Args:
        seed: of the swaps, the shuffles and the choice of queries; defaults to 0.
        max_queries: of a task at most, drawn by the seed. Default: all.
        batch_size, max_reasoning_tokens, max_reasoning_rounds: as in [`Settings`].

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
        """Say how queries and candidates are embedded."""
        return Settings(
            modes=("always",),
            batch_size=self.batch_size,
            max_reasoning_tokens=self.max_reasoning_tokens,
            max_reasoning_rounds=self.max_reasoning_rounds,
        )


def run_diagnosis(
    model: Any,
    tasks: Iterable[RetrievalTask] | TaskSource,
    settings: ShortcutSettings | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """
    Find out whether a model reads its rationales, on queries that all think.

    Every query is embedded after the rationale that the model wrote for it, and after what takes its place: nothing,
    an empty one, that of another query with other right candidates, and its own words shuffled. Candidates are
    embedded directly. Of a model whose direct and reasoned embeddings are two spaces, candidates think, and queries
    without a rationale are not compared with them.

    With `output`, every task is written as soon as it is measured, and the same call goes on where a killed one
    stopped: a row per query in `tasks/TASK/shortcut.parquet`, and what is returned in `shortcut.json`.

    Args:
        model: an [`MMEmbR1`].
        tasks, config, progress: as in `run_evaluation`.
        settings: how. Default: `ShortcutSettings()`.
        output: the folder. Default: nothing is written.

    Returns:
        A dict that JSON can hold: `format`; `config`; `tasks`, per task its `metric`, `groups` and what
        `verdict.summarise_outcomes` gives; `summary`, the same over the tasks of each group, and over all under `all`,
        whose `verdict` and `reason` are the test's.

    Raises:
        ValueError: if there are no tasks, or two of one name; the model is no mmemb-r1 checkpoint; `output` holds
            another test; or a rationale that is forced gives another vector than when the model decodes it.
    """
    settings, source = settings or ShortcutSettings(), TaskSource.of(tasks)
    if not hasattr(model, "explain"):
        raise ValueError(
            f"the shortcut test needs an mmemb-r1 checkpoint, which thinks; this is a {type(model).__name__}"
        )
    facts = AdaptiveEncoder(model, settings.encoding()).facts()
    folder = None if output is None else RunFolder(output, {"test": ROWS_NAME, **facts, **asdict(settings)})
    facts_of: dict[str, dict[str, Any]] = {}
    measured: dict[str, Columns] = {}
    with progress_bar(progress) as bar:
        tester = ShortcutTester(model, settings, folder, bar)
        for task in in_turn(source.tasks, bar):
            measured[task.name] = tester.measure(task)
            facts_of[task.name] = {"metric": task.metric, "groups": dict(task.groups)}
            logger.info("%s: %d queries", task.name, len(measured[task.name]["score"]))
    outcomes = join_outcomes(measured)
    members = members_of({name: of_task["groups"] for name, of_task in facts_of.items()})
    noted = {**asdict(settings), "versions": versions(), "checkpoint": facts["checkpoint"], **source.noted}
    results = {
        "format": FORMAT,
        "config": {**noted, **(config or {})},
        "tasks": {name: {**of_task, **summarise_outcomes(outcomes, [name])} for name, of_task in facts_of.items()},
        "summary": {
            group: {"tasks": len(names), **summarise_outcomes(outcomes, names)} for group, names in members.items()
        },
    }
    if output is not None:
        save_results(results, Path(output) / RESULT_FILE)
    return results


ROWS_NAME = "shortcut"
# How far the vector after the own rationale, read in one pass, may lie from that of `encode`, which decoded it.
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
ROUGH_TOLERANCE = 0.1  # in half precision
Vectors = npt.NDArray[np.float32]


class ShortcutTester:
    """Tests an [`MMEmbR1`] task by task; the folder, if there is one, keeps the rows, and they are found again."""

    def __init__(self, model: Any, settings: ShortcutSettings, folder: RunFolder | None, bar: Progress) -> None:
        self.model, self.settings, self.folder, self.bar = model, settings, folder, bar
        encoding = settings.encoding()
        self.runner = TaskRunner(AdaptiveEncoder(model, encoding), encoding, None, bar)

    def measure(self, task: RetrievalTask) -> Columns:
        """Measure the rows of a task, except what the folder holds already, and keep them there."""
        task = drawn_queries(task, self.settings.max_queries, self.settings.seed)
        if self.folder is None:
            return self._measure(task)
        self.folder.begin(task, task_digest(task))
        path = rows_path(self.folder.folder, task.name, ROWS_NAME)
        if not path.is_file():
            write_columns(path, self._measure(task), KINDS)
        return read_outcomes(path)

    def _measure(self, task: RetrievalTask) -> Columns:
        candidates = self.runner.candidate_vectors(task)
        prompt = query_prompt(self.model, task)
        with step_of(self.bar, f"{task.name} rationales", len(task.query_ids)) as advance:
            rationales = own_rationales(
                self.model,
                task.queries,
                prompt=prompt,
                batch_size=self.settings.batch_size,
                options=self.settings.encoding().reasoning_options(),
                advance=advance,
            )
        own, direct = self._forced(task, "own", [rationale.ids for rationale in rationales], prompt)
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        decoded = np.stack([rationale.embedding for rationale in rationales])
        check_forced(task, own, decoded, TOLERANCE.get(dtype, ROUGH_TOLERANCE))
        donors = donors_of(task, rationales, self.settings.seed)
        columns: Columns = {
            "query_id": np.array(task.query_ids, dtype=object),
            "cluster": np.array(clusters_of(task), dtype=object),
            "rationale": np.array(["\n".join(rationale.texts) for rationale in rationales], dtype=object),
            "donor": np.array([task.query_ids[row] if row >= 0 else None for row in donors], dtype=object),
            "score": score_queries(task, own, candidates).metrics[task.metric],
            "num_reasoning_tokens": np.array([rationale.num_tokens for rationale in rationales], dtype=np.float64),
            "cosine_between_queries": np.where(donors >= 0, (own * own[donors]).sum(axis=1), np.nan),
        }
        for name, suffixes in self._suffixes(rationales, donors).items():
            rows = [row for row, suffix in enumerate(suffixes) if suffix is not None]
            vectors = own.copy()
            if name == "drop":
                if self.runner.encoder.spaces == 2:  # the direct vector is of another space
                    rows = []
                vectors = direct
            elif rows:
                vectors[rows] = self._forced(task, name, suffixes, prompt)[0]
            changed = np.isin(np.arange(len(own)), rows)
            score = score_queries(task, vectors, candidates).metrics[task.metric]
            columns[f"score_{name}"] = np.where(changed, score, np.nan)
            columns[f"cosine_{name}"] = np.where(changed, (own * vectors).sum(axis=1), np.nan)
        return columns

    def _suffixes(
        self, rationales: Sequence[OwnRationale], donors: npt.NDArray[np.int64]
    ) -> dict[str, list[list[int] | None]]:
        """Write, for each intervention, what each query is given instead; `None` where that is its own rationale."""
        seed = self.settings.seed
        orders = [[shuffled(text, seed) for text in rationale.texts] for rationale in rationales]
        spaced = [[" ".join(text.split()) for text in rationale.texts] for rationale in rationales]
        empty = suffix_of_texts(self.model, [""])
        return {
            "drop": [[] for _ in rationales],
            "empty": [empty if rationale.ids != empty else None for rationale in rationales],
            "swap": [rationales[row].ids if row >= 0 else None for row in donors],
            "shuffle": [
                suffix_of_texts(self.model, order) if order != own else None
                for order, own in zip(orders, spaced, strict=True)
            ],
        }

    def _forced(
        self, task: RetrievalTask, name: str, suffixes: Sequence[list[int] | None], prompt: str | None
    ) -> tuple[Vectors, Vectors]:
        """Compute last and direct vectors `(n, D)` of the queries that have a suffix."""
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


@dataclass(frozen=True)
class OwnRationale:
    """
    Holds what a model wrote about one query of its own accord, so that the same or another can be forced.

    Attributes:
        ids: of all after the prompt's `<|embed|>`: `<think> r </think> <|embed|>`, once per round.
        texts, num_tokens: of the rationales, one text per round.
        embedding: `(D,)` float32, the vector after it, of unit norm.
    """

    ids: list[int]
    texts: tuple[str, ...]
    num_tokens: int
    embedding: npt.NDArray[np.float32]


def own_rationales(
    model: Any,
    queries: Sequence[Any],
    *,
    prompt: str | None = None,
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[OwnRationale]:
    """
    Let a model write its rationale about every query; an `InputError` names the number of one that can't be embedded.

    `prompt` is the system turn of queries that bring none, `options` are those of `encode`, and `advance` is told how
    many more are done, part by part.
    """
    given: dict[str, Any] = {"reasoning": "always", "batch_size": batch_size, "normalize_embeddings": True}
    given["second_look"] = False  # what a rationale does to its own vector is what is looked at
    given |= {"prompt": prompt} if prompt else {}
    given |= options or {}
    think = partial(model.encode, output_value=None, show_progress_bar=False, **given)
    rationales = []
    for _, items in in_parts(queries, batch_size, think):
        rationales += [_own_rationale(model, item) for item in items]
        if advance is not None:
            advance(len(items))
    return rationales


def _own_rationale(model: Any, item: Mapping[str, Any]) -> OwnRationale:
    config = model[0].model.config
    ids = [int(token) for token in item["rationale_ids"] if token >= 0]
    return OwnRationale(
        ids=suffix_of_ids(config, ids),
        texts=tuple(model.tokenizer.decode(one).strip() for one in round_ids(config, ids)),
        num_tokens=int(item["num_reasoning_tokens"]),
        embedding=item["sentence_embedding"].float().cpu().numpy(),
    )


def suffix_of_texts(model: Any, texts: Sequence[str]) -> list[int]:
    """Tokenise `<think> r </think> <|embed|>` for each text, one after another."""
    config = model[0].model.config
    return list(chain.from_iterable(rationale_suffix(model.processor, config, text) for text in texts))


def drawn_queries(task: RetrievalTask, most: int | None, seed: int) -> RetrievalTask:
    """Draw at most so many queries of a task by the seed, in their order."""
    if most is None or len(task.query_ids) <= most:
        return task
    stream = seeded_random(seed, "queries", task.name)
    return some_queries(task, sorted(stream.sample(range(len(task.query_ids)), most)))


def query_prompt(model: Any, task: RetrievalTask) -> str | None:
    """Choose the instruction of queries that have none of their own: the task's, or what the model saved for it."""
    if task.query_prompt is not None:
        return task.query_prompt
    saved = getattr(model, "prompts", None) or {}
    return saved.get(QUERY) or saved.get(getattr(model, "default_prompt_name", None)) or None


def donors_of(task: RetrievalTask, rationales: Sequence[OwnRationale], seed: int) -> npt.NDArray[np.int64]:
    """Draw for each query `(Q,)` another one with other words in its rationale and other right candidates, or -1."""
    words = number_names([rationale.texts for rationale in rationales])
    right = number_names([frozenset(one) for one in task.relevance])
    anchors = np.stack([words, right], axis=1)  # (Q, 2)
    names = [f"{task.name}/{query}" for query in task.query_ids]
    return swap_donors(np.zeros(len(rationales), dtype=np.int64), anchors, names, seed)


def check_forced(task: RetrievalTask, forced: Vectors, decoded: Vectors, tolerance: float) -> None:
    """Refuse vectors `(Q, D)` after the same rationale, forced and decoded, that lie too far apart."""
    distance = np.linalg.norm(forced - decoded, axis=1)  # (Q,)
    if not (distance <= tolerance).all():
        row = int(np.argmax(np.nan_to_num(distance, nan=np.inf)))
        raise ValueError(
            f"{task.name}: after its own rationale the query {task.query_ids[row]!r} has another vector when the "
            f"rationale is forced than when the model decodes it, {distance[row]:.2g} away (allowed: {tolerance:g}), "
            "so other rationales can't be forced on this model either. Modules after the first one, or a prompt that "
            "only `encode` knows, would explain it."
        )
