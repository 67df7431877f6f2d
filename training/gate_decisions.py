"""Measure the decisions of a gate on a table of pairs: what each rationale adds to the probability of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from mmemb_r1.content import content_key
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks
from mmemb_r1.evaluation.encoders import DOCUMENT, QUERY, encoder_of, in_parts, saved_prompts
from mmemb_r1.evaluation.pair_tasks import pair_tasks
from mmemb_r1.evaluation.scoring import SCORES_AT_ONCE, TIE_TOLERANCE
from mmemb_r1.evaluation.settings import Settings
from mmemb_r1.evaluation.tasks import RetrievalTask
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.modeling.paths_mmemb_r1 import chosen_places, reading_places, round_ids, suffix_of_ids
from mmemb_r1.modeling.second_look_mmemb_r1 import likelihood
from mmemb_r1.objective import target_probability
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.runs import record_run, replaced_file
from mmemb_r1.seeding import random_order, seeded_random
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.training.tables import PAIR_COLUMNS, check_pairs, plain_column
from mmemb_r1.training.vlm import weights_fingerprint

Arrays = dict[str, npt.NDArray[Any]]


class Decisions(NamedTuple):
    """
    Hold what the gate decides on: N queries that think R rounds each, whatever the gate says.

    The last of these are for a second look, and there only if it was asked for.
    """

    inputs: Tensor  # (N, R, G) what the gate reads before each round
    probabilities: Tensor  # (N, R + 1) of the target, before any rationale and after each round
    tokens: Tensor  # (N, R) of the rationale of each round
    ranks: npt.NDArray[np.int64]  # (N, R + 1) of the target
    vectors: Tensor | None = None  # (N, R + 1, D) before any rationale and after each round
    written: Tensor | None = None  # (N, R, 3) likelihood of all that was written, after each round
    competitions: Sequence[Competition] = ()  # of all N queries
    candidates: Sequence[Tensor] = ()  # of each competition, (C, D)
    temperature: float = 0.02  # divides the cosines of `probabilities`

    @property
    def gains(self) -> Tensor:
        """`(N, R)` what each round adds to the probability of the target."""
        return self.probabilities[:, 1:] - self.probabilities[:, :-1]

    def costs(self, flat: float, token_price: float) -> Tensor:
        """Compute `(N, R)` what each round has to gain, as probability of the target, to be worth its time."""
        return flat + token_price * self.tokens

    def of(self, rows: npt.NDArray[np.int64]) -> Decisions:
        """Those of some of the queries."""
        there = [np.isin(one.rows, rows).any() for one in self.competitions]
        return self._replace(
            inputs=self.inputs[rows],
            probabilities=self.probabilities[rows],
            tokens=self.tokens[rows],
            ranks=self.ranks[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            written=None if self.written is None else self.written[rows],
            competitions=only_of(self.competitions, rows),
            candidates=[one for one, is_there in zip(self.candidates, there, strict=True) if is_there],
        )


@dataclass(frozen=True)
class Competition:
    """Hold Q queries whose targets compete among the same C candidates."""

    rows: npt.NDArray[np.int64]  # (Q,) of the pairs table, in its order
    candidates: Sequence[Any]  # C inputs
    right: list[list[int]]  # Q, the places of each query's right candidates
    pools: list[list[int]] | None = None  # Q, the places of those that it competes with; None: all


def competitions_of(
    pairs: Dataset, candidates: Dataset | None = None, batch_size: int | None = None, seed: int = 0
) -> list[Competition]:
    """
    Find what the target of each pair competes with: the candidates of its set or, without `candidates`, the targets of
    its task; with `batch_size`, only those of so many pairs that `seed` draws. One without a competitor is an error.
    """
    if candidates is None:
        check_pairs(pairs, PAIR_COLUMNS)
        tasks = pair_tasks(pairs)
        if batch_size is not None:
            tasks = [in_batches(task, batch_size, seed) for task in tasks]
    else:
        check_pairs(pairs, ("pair_id", "query"))
        tasks = atlas_tasks(pairs, candidates)
    row_of = {pair_id: row for row, pair_id in enumerate(plain_column(pairs, "pair_id"))}
    sharing: dict[int, list[RetrievalTask]] = {}
    for task in tasks:
        sharing.setdefault(id(task.candidates), []).append(task)
    return [_competition(group, row_of) for group in sharing.values()]


def in_batches(task: RetrievalTask, batch_size: int, seed: int) -> RetrievalTask:
    """Put the queries of a task into random batches, each among the right candidates of its batch."""
    order = list(random_order(len(task.query_ids), seeded_random(seed, "batches", task.name)))
    pools: dict[int, list[str]] = {}
    for batch in np.array_split(order, max(1, round(len(order) / batch_size))):
        pool = list(dict.fromkeys(candidate for row in batch.tolist() for candidate in task.relevance[row]))
        pools |= dict.fromkeys(batch.tolist(), pool)
    return replace(task, pools=[pools[row] for row in range(len(order))])


def _competition(tasks: Sequence[RetrievalTask], row_of: Mapping[str, int]) -> Competition:
    """Make one competition of tasks that share their candidates, the queries in the order of the table."""
    place = {candidate: number for number, candidate in enumerate(tasks[0].candidate_ids)}
    queries: list[tuple[int, list[int], Any]] = []
    for task in tasks:
        pools: Sequence[Sequence[str] | None] = task.pools or [None] * len(task.query_ids)
        for pair_id, relevance, pool in zip(task.query_ids, task.relevance, pools, strict=True):
            if len(relevance) == len(place if pool is None else pool):
                raise ValueError(
                    f"the target of pair {pair_id!r} has no competitor: its task {task.name!r} has no other target "
                    "there. Add pairs, give candidates, or leave the pair out."
                )
            right = [place[candidate] for candidate in relevance]
            queries.append((row_of[pair_id], right, None if pool is None else [place[one] for one in pool]))
    queries.sort(key=lambda query: query[0])
    rows, rights, pooled = (list(values) for values in zip(*queries, strict=True))
    return Competition(np.array(rows), tasks[0].candidates, rights, None if pooled[0] is None else pooled)


def outcomes(
    competition: Competition, queries: Tensor, candidates: Tensor, temperature: float
) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """
    Compute probability and rank `(Q,)` of the targets of queries `(Q, D)` among candidates `(C, D)`, all unit vectors.

    Ties count against the target. Of several right candidates the nearest counts, and the others don't compete.
    """
    probabilities, places = [], []
    step = max(1, SCORES_AT_ONCE // len(candidates))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ candidates.T  # (q, C)
        right = _mask(scores, competition.right[start : start + step])
        nearest = scores.masked_fill(~right, -torch.inf).argmax(dim=1, keepdim=True)  # (q, 1)
        pools = competition.pools and competition.pools[start : start + step]
        others = ~right if pools is None else _mask(scores, pools) & ~right
        competing = scores.masked_fill(~others.scatter(1, nearest, True), -torch.inf)
        probabilities.append(target_probability(competing, nearest.squeeze(1), temperature))
        places.append((competing >= competing.gather(1, nearest) - TIE_TOLERANCE).sum(dim=1))  # the target is one
    return torch.cat(probabilities), torch.cat(places).numpy()


def only_of(competitions: Sequence[Competition], rows: npt.NDArray[np.int64]) -> list[Competition]:
    """Leave only the queries of some `rows`, in ascending order, which become rows 0, 1, ...; all candidates stay."""
    found = []
    for one in competitions:
        places = np.flatnonzero(np.isin(one.rows, rows))
        if len(places):
            pools = None if one.pools is None else [one.pools[place] for place in places]
            right = [one.right[place] for place in places]
            found.append(replace(one, rows=np.searchsorted(rows, one.rows[places]), right=right, pools=pools))
    return found


def _mask(scores: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """Make a mask of the shape of `scores` `(q, C)`, true at some places of each row."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, columns in enumerate(places):
        mask[row, list(columns)] = True
    return mask


def measure_decisions(
    model: MMEmbR1,
    queries: Sequence[Any],
    competitions: Sequence[Competition],
    *,
    rounds: int = 1,
    given: Sequence[Sequence[int]] | None = None,
    batch_size: int = 32,
    temperature: float = 0.02,
    for_second_look: bool = False,
    folder: Path | None = None,
    progress: bool | None = False,
) -> Decisions:
    """
    Embed all candidates directly, and all queries before and after each round, whatever the gate says. Where direct
    and reasoned embeddings are two spaces, reasoned queries are compared with reasoned candidates.

    Args:
        queries: N inputs, the rows of `competitions`, of which each is in one.
        rounds: rationales of each query.
        given: N lists of ids, one whole rationale for each query, with what surrounds it, in place of those that the
            model, or its thinker, writes; with `rounds` 1.
        for_second_look: whether to measure how likely the model finds the rationales, and to return what vectors after
            a second look are mixed of, and compared with. Not with a thinker.
        folder: keeps vectors and what the gate reads, for a call that goes on after a kill. Default: nothing is kept.
            What another model or other inputs gave is a `ValueError`.
    """
    encoder = encoder_of(model, Settings(modes=("never",), batch_size=batch_size))
    if folder is not None:
        facts = {"rounds": rounds, "batch_size": batch_size} | ({"second look": True} if for_second_look else {})
        _record(folder, model, queries, competitions, given, facts)

    modes = {"vectors": "never"} | ({"reasoned": "always"} if model[0].model.config.spaces == 2 else {})

    def embed(inputs: list[Any]) -> Arrays:
        found = {
            name: encoder.embed(inputs, side=DOCUMENT, reasoning=mode, prompt=None) for name, mode in modes.items()
        }
        return {name: one.embeddings for name, one in found.items()}

    def decide_given(inputs: list[Any]) -> Arrays:
        values, suffixes = zip(*inputs, strict=True)
        return rounds_of(model, values, rounds, batch_size, suffixes, for_second_look)

    def decide(inputs: list[Any]) -> Arrays:
        if rounds > 1 or for_second_look:
            return rounds_of(model, inputs, rounds, batch_size, with_likelihood=for_second_look)
        both = [encoder.embed(inputs, side=QUERY, reasoning=mode, prompt=None) for mode in ("never", "always")]
        vectors = np.stack([one.embeddings for one in both], axis=1)  # (N, 2, D)
        read = read_by_gate(model, inputs, batch_size).numpy()
        return {"vectors": vectors, "inputs": read[:, None], "tokens": both[1].num_reasoning_tokens[:, None]}

    with progress_bar(progress) as bar:
        with step_of(bar, "candidates", sum(len(one.candidates) for one in competitions)) as advance:
            documents = [
                _in_files(folder, f"candidates-{number}", one.candidates, batch_size, embed, advance)
                for number, one in enumerate(competitions)
            ]
        with step_of(bar, "queries", len(queries)) as advance:
            if given is None:
                seen = _in_files(folder, "queries", queries, batch_size, decide, advance)
            else:
                both = list(zip(queries, given, strict=True))
                seen = _in_files(folder, "queries", both, batch_size, decide_given, advance)
    return _decided(competitions, documents, seen, temperature)


def _record(
    folder: Path,
    model: MMEmbR1,
    queries: Sequence[Any],
    competitions: Sequence[Competition],
    given: Sequence[Sequence[int]] | None,
    facts: dict[str, Any],
) -> None:
    """Note what is measured in its folder, with further `facts`, or refuse a folder of something else."""
    network = model[0].model
    inputs = [*queries, *(candidate for one in competitions for candidate in one.candidates)]
    digest = blake2b(b"".join(map(content_key, inputs)), digest_size=16).hexdigest()
    facts = {"weights": weights_fingerprint(network), "inputs": digest, **facts}
    facts |= {"gate reads": list(network.config.gate_inputs), "holds": ["inputs", "tokens", "vectors"]}
    if given is None and model.thinking is not None:
        facts["thinker"] = model.thinking.identity
    if given is not None:
        facts["rationales"] = blake2b(str([list(ids) for ids in given]).encode(), digest_size=16).hexdigest()
    record_run(folder / "embedded.json", facts)


def _decided(
    competitions: Sequence[Competition], documents: Sequence[Arrays], seen: Arrays, temperature: float
) -> Decisions:
    """Let targets compete, by what was embedded of the candidates of each competition and of all queries."""
    vectors = torch.from_numpy(seen["vectors"])  # (N, R + 1, D)
    probabilities = torch.zeros(vectors.shape[:2])
    ranks = np.zeros(vectors.shape[:2], dtype=np.int64)
    for one, embedded in zip(competitions, documents, strict=True):
        for depth in range(vectors.shape[1]):
            among = torch.from_numpy(embedded.get("reasoned", embedded["vectors"]) if depth else embedded["vectors"])
            results = outcomes(one, vectors[one.rows, depth], among, temperature)
            probabilities[one.rows, depth], ranks[one.rows, depth] = results
    read, tokens = torch.from_numpy(seen["inputs"]), torch.from_numpy(seen["tokens"])
    decisions = Decisions(read, probabilities, tokens, ranks, temperature=temperature)
    if "written" not in seen:
        return decisions
    return decisions._replace(
        vectors=vectors,
        written=torch.from_numpy(seen["written"]),
        competitions=competitions,
        candidates=[torch.from_numpy(embedded["vectors"]) for embedded in documents],
    )


@torch.no_grad()
def read_by_gate(model: MMEmbR1, queries: Sequence[Any], batch_size: int) -> Tensor:
    """Compute what the gate reads at the first `<|embed|>`, `(N, G)`, on the CPU."""
    outputs = (model[0].model(**_on_device(model, features)) for features in _batches(model, queries, batch_size))
    return torch.cat([output.gate_inputs[:, 0].float().cpu() for output in outputs])


@torch.no_grad()
def rounds_of(
    model: MMEmbR1,
    queries: Sequence[Any],
    rounds: int,
    batch_size: int,
    given: Sequence[Sequence[int]] | None = None,
    with_likelihood: bool = False,
) -> Arrays:
    """
    Let queries think all rounds: `inputs` of the gate `(N, R, G)` before each, `vectors` `(N, R + 1, D)` also after
    the last, the `tokens` `(N, R)` of each rationale, and `with_likelihood` what the model thinks of all that was
    `written` after each, `(N, R, 3)`.

    With `given` rationales, ids of all rounds of each query with what surrounds them, the model writes none.
    """
    inputs: list[Tensor] = []
    vectors: list[Tensor] = []
    likelihoods: list[Tensor] = []
    tokens: list[list[int]] = []
    network = model[0].model
    for number, features in enumerate(_batches(model, queries, batch_size)):
        written = None
        if given is None:
            options = {"reasoning": "always", "max_reasoning_rounds": rounds, "output_all_embeddings": True}
            options |= {"second_look": False}
            written = network.embed(**_on_device(model, features), **options)
            suffixes = [suffix_of_ids(network.config, ids[ids >= 0].tolist()) for ids in written.rationale_ids]
        else:
            suffixes = [list(ids) for ids in given[number * batch_size : (number + 1) * batch_size]]
        tokens += [tokens_of_rounds(network.config, suffix, rounds) for suffix in suffixes]
        whole = append_tokens(features, suffixes, model.tokenizer.pad_token_id, "left")
        length, limit = whole["input_ids"].shape[1], context_length(network.config)
        if length > limit:
            raise ValueError(f"a query and its rationale have {length:,} tokens; the model reads {limit:,}.")
        labels = {"labels": rationale_labels(network.config, whole)} if with_likelihood else {}
        output = network(**_on_device(model, whole | labels))
        read = output.gate_inputs  # (B, R + 1, G)
        if read.shape[1] != rounds + 1:
            raise ValueError(f"the queries thought {read.shape[1] - 1} rounds; expected {rounds} of each")
        inputs.append(read[:, :rounds].float().cpu())
        embeddings = output.embeddings if written is None else written.all_embeddings
        vectors.append(embeddings.float().cpu())  # (B, R + 1, D)
        if with_likelihood:
            likelihoods.append(_likelihoods(network.config, whole, labels["labels"], output.rationale_logps, rounds))
    counted = np.array(tokens, dtype=np.int64)
    found = {"inputs": torch.cat(inputs).numpy(), "vectors": torch.cat(vectors).numpy(), "tokens": counted}
    return found | ({"written": torch.cat(likelihoods).numpy()} if with_likelihood else {})


def rationale_labels(config: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Label the tokens of rationales in whole sequences, control tokens not counted: `(B, S)`, -100 elsewhere."""
    ids = batch["input_ids"]
    chosen = chosen_places(config, reading_places(config, ids, batch["attention_mask"]))
    return ids.where(chosen & (ids != config.end_think_token_id), -100)


def _likelihoods(config: Any, batch: Mapping[str, Tensor], labels: Tensor, logps: Tensor, rounds: int) -> Tensor:
    """Sum up log-probabilities `(n,)` of labelled tokens `(B, S)`: `(B, R, 3)`, of all that was written by a round."""
    labelled = labels != -100
    values = torch.zeros(labels.shape).masked_scatter(labelled, logps.float().cpu())
    number = reading_places(config, batch["input_ids"], batch["attention_mask"]).long().cumsum(dim=1)  # (B, S)
    rows = [
        [
            likelihood(row[where & (count <= depth)].tolist(), config.max_reasoning_tokens * depth)
            for depth in range(1, rounds + 1)
        ]
        for row, where, count in zip(values, labelled, number, strict=True)
    ]
    return torch.tensor(rows)


def tokens_of_rounds(config: Any, suffix: Sequence[int], rounds: int) -> list[int]:
    """
    Count the tokens of each rationale of what follows a prompt, control tokens not counted; a round that was not
    thought has none.
    """
    inside = suffix[len(config.opening_ids) : len(suffix) - 1 - len(config.closing_ids)]
    lengths = [len(ids) for ids in round_ids(config, inside)]
    return (lengths + [0] * rounds)[:rounds]


def _batches(model: MMEmbR1, queries: Sequence[Any], batch_size: int) -> Iterator[dict[str, Any]]:
    prompt = saved_prompts(model).get(QUERY)
    for start in range(0, len(queries), batch_size):
        try:
            yield model_inputs(model.preprocess(queries[start : start + batch_size], prompt=prompt))
        except InputError as error:
            raise error.at(start + error.index) from error


def _on_device(model: MMEmbR1, features: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(model.device) for name, value in features.items()}


def _in_files(
    folder: Path | None,
    name: str,
    inputs: Sequence[Any],
    batch_size: int,
    make: Callable[[list[Any]], Arrays],
    advance: Callable[[int], None],
) -> Arrays:
    """Make arrays of all inputs, part by part; each is kept in a file of the folder, and read where it is."""
    numbers = count()

    def part(some: list[Any]) -> Arrays:
        path = None if folder is None else folder / f"{name}-{next(numbers):05}.npz"
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
        else:
            arrays = make(some)
            if path is not None:
                with replaced_file(path) as temporary:
                    named: dict[str, Any] = arrays
                    np.savez(temporary, **named)  # numpy 2.0 would take allow_pickle for an array
        advance(len(some))
        return arrays

    try:
        parts = [arrays for _, arrays in in_parts(inputs, batch_size, part)]
    except InputError as error:
        raise ValueError(
            f"number {error.index} of the {name}, counted from 0, can't be embedded: {error.reason}"
        ) from error
    return {key: np.concatenate([one[key] for one in parts]) for key in parts[0]}
