"""The models under mteb: a task of its own kind, in memory, whose scores are ours.

The task is made here because mteb's own are downloaded. mteb is of the extra `eval`, which the extra `dev` has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.evaluation.metrics import ranks, unit_rows
from mmemb_r1.evaluation.mteb_model import MTEBModel
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.thinker import Thought

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning"),
]
COLORS = ["red", "green", "blue", "white", "black", "yellow"]
PROMPTS = {"query": "Find the color.", "document": ""}
BUDGET = 3


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> MMEmbR1:
    """Not to be changed."""
    return MMEmbR1(str(tiny_checkpoint), device="cpu", prompts=PROMPTS)


@pytest.fixture(scope="module")
def documents() -> dict[str, list[Any]]:
    """What the words are searched among, by modality."""
    return {
        "text": [f"The largest is {color}." for color in COLORS],
        "image": [Image.new("RGB", (64, 64), color) for color in COLORS],
    }


@pytest.fixture(scope="module")
def make_task(documents: dict[str, list[Any]]) -> Callable[[str], Any]:
    """`make_task(modality)`: each color's word is the query of its own document."""
    import mteb
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    features = {"text": Value("string"), "image": ImageFeature()}
    ids = [str(index) for index in range(len(COLORS))]

    def make(modality: str) -> Any:
        class Colors(AbsTaskRetrieval):
            metadata = mteb.TaskMetadata(
                name="Colors",
                description="Words for colors and what shows or names them.",
                type="Retrieval" if modality == "text" else "Any2AnyRetrieval",
                category="t2t" if modality == "text" else "t2i",
                modalities=sorted({"text", modality}),
                eval_langs=["eng-Latn"],
                main_score="ndcg_at_10",
                dataset={"path": "in-memory", "revision": "none"},
            )

            def load_data(self, *args: Any, **kwargs: Any) -> None:
                corpus = Dataset.from_dict(
                    {"id": ids, modality: documents[modality]},
                    features=Features({"id": Value("string"), modality: features[modality]}),
                )
                split = {
                    "queries": Dataset.from_dict({"id": ids, "text": COLORS}),
                    "corpus": corpus,
                    "relevant_docs": {index: {index: 1} for index in ids},
                    "top_ranked": None,
                }
                self.dataset = {"default": {"test": split}}
                self.data_loaded = True

        return Colors()

    return make


@pytest.fixture
def thoughts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rationale tokens of every input that was embedded, in order."""
    seen: list[int] = []
    original = MMEmbR1Module.embed_batches

    def embed_batches(self: MMEmbR1Module, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        for output in original(self, *args, **kwargs):
            seen.extend(output["num_reasoning_tokens"].tolist())
            yield output

    monkeypatch.setattr(MMEmbR1Module, "embed_batches", embed_batches)
    return seen


def evaluate(model: Any, task: Any, folder: Path, **options: Any) -> tuple[dict[str, float], np.ndarray]:
    """Measures by name, and the score `(Q, C)` of each query with each document. Nothing is cached."""
    import mteb

    result = mteb.evaluate(
        model,
        task,
        encode_kwargs={"batch_size": 4, **options},
        cache=None,
        co2_tracker=False,
        prediction_folder=folder,
        show_progress_bar=False,
    )
    (task_result,) = result.task_results
    (measures,) = task_result.scores["test"]
    predictions = json.loads((folder / "Colors_predictions.json").read_text(encoding="utf-8"))["default"]["test"]
    order = [str(index) for index in range(len(COLORS))]
    return measures, np.array([[predictions[query][document] for document in order] for query in order])


def by_hand(model: MMEmbR1, documents: list[Any], reasoning: str, of_documents: str, **options: Any) -> np.ndarray:
    """The scores `(Q, C)` as our own evaluation finds them."""
    queries = model.encode(COLORS, prompt=PROMPTS["query"], reasoning=reasoning, **options)
    candidates = model.encode(documents, reasoning=of_documents, **options)
    return unit_rows("queries", queries) @ unit_rows("candidates", candidates).T


@pytest.mark.parametrize(
    ("reasoning", "of_documents"), [("never", "never"), ("always", "never"), ("always", "always")]
)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_scores_and_measures_are_our_own(
    modality, reasoning, of_documents, model, documents, make_task, thoughts, tmp_path
):
    """Queries are embedded with their prompt, and both sides with the option of thinking that was passed for them."""
    options = {"reasoning": reasoning, "max_reasoning_tokens": BUDGET}
    given = options if of_documents == "never" else {**options, "document_reasoning": of_documents}
    measures, scores = evaluate(MTEBModel(model, **given), make_task(modality), tmp_path)
    thought = [0 < count <= BUDGET for count in thoughts]
    assert thought == [mode == "always" for mode in (of_documents, reasoning) for _ in COLORS] or thought == [
        mode == "always" for mode in (reasoning, of_documents) for _ in COLORS
    ]  # mteb chooses which side comes first
    expected = by_hand(model, documents[modality], of_documents=of_documents, **options)
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
    found = ranks(scores, np.eye(len(COLORS)))
    assert len(set(found.tolist())) > 1  # a collapsed model would make all measures agree
    for k in (1, 3, 5):
        assert measures[f"hit_rate_at_{k}"] == pytest.approx((found <= k).mean(), abs=1e-4)
    assert measures["mrr_at_10"] == pytest.approx((1 / found).mean(), abs=1e-4)
    assert measures["ndcg_at_10"] == pytest.approx((1 / np.log2(1 + found)).mean(), abs=1e-4)
    assert measures["main_score"] == measures["ndcg_at_10"]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_what_is_passed_matters(modality, model, documents):
    """The scores above would agree as well if prompts and options got lost on both ways."""
    never, always = (
        by_hand(model, documents[modality], reasoning=mode, of_documents=mode) for mode in ("never", "always")
    )
    assert np.abs(never - always).max() > 1e-3
    words = [model.encode(COLORS, prompt=prompt, reasoning="never") for prompt in (PROMPTS["query"], None)]
    assert np.abs(np.subtract(*words)).max() > 1e-3


def test_options_of_a_call_are_told_not_to_be_in_the_key_of_results(model, make_task, thoughts, tmp_path):
    options = {"reasoning": "always", "max_reasoning_tokens": BUDGET}
    with pytest.warns(UserWarning, match="'reasoning' was given in encode_kwargs, .* cache=None"):
        late, scores = evaluate(MTEBModel(model), make_task("text"), tmp_path / "late", **options)
    assert sum(count > 0 for count in thoughts) == len(COLORS)  # the queries; documents go by the checkpoint
    early, same = evaluate(MTEBModel(model, **options), make_task("text"), tmp_path / "early")
    assert late == early
    np.testing.assert_array_equal(scores, same)


def test_results_are_kept_by_checkpoint_and_options(model, tiny_checkpoint):
    plain, thinking = MTEBModel(model).mteb_model_meta, MTEBModel(model, reasoning="always").mteb_model_meta
    assert plain.modalities == ["text", "image", "video"]
    assert plain.name == f"local/{tiny_checkpoint.name}"
    assert plain.experiment_name is None
    assert thinking.experiment_name == "reasoning_always"
    other = MMEmbR1(str(tiny_checkpoint), device="cpu")
    with torch.no_grad():
        other[0].model.gate.output.bias.add_(1)
    assert MTEBModel(other, name="org/other").mteb_model_meta.revision != plain.revision == thinking.revision
    assert MTEBModel(other, name="org/other").mteb_model_meta.name == "org/other"


def test_whatever_changes_a_vector_or_a_score_is_in_the_revision(tiny_checkpoint):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    adapted = MTEBModel(model)
    seen = [adapted.mteb_model_meta.revision, MTEBModel(MMEmbR1(str(tiny_checkpoint), device="cpu", truncate_dim=2))]
    seen[1:] = [seen[1].mteb_model_meta.revision]
    for change in (
        lambda: setattr(model, "truncate_dim", 4),
        lambda: model.prompts.update(query="Find it."),
        lambda: setattr(model, "similarity_fn_name", "dot"),
        lambda: setattr(model[0].model.config, "normalize", False),
        lambda: setattr(adapted, "num_frames", 2),
        lambda: model.set_thinker(Fixed("red")),
        lambda: model.set_thinker(Fixed("blue")),
        lambda: model.set_thinker(Fixed("blue"), "text"),
    ):
        change()
        seen.append(adapted.mteb_model_meta.revision)
    assert len(set(seen)) == len(seen)
    assert MTEBModel(model).mteb_model_meta.revision != seen[-1]  # samples as many frames as the config says
    assert MTEBModel(model).num_frames == model[0].model.config.num_video_frames


class Fixed:
    """A thinker that says one thing."""

    def __init__(self, text: str) -> None:
        self.text, self.definition = text, {"kind": "fixed", "text": text}

    def think(self, inputs: Any, max_tokens: int) -> Iterator[tuple[int, Thought]]:
        return ((number, Thought(self.text)) for number, _ in enumerate(inputs))


def texts_of(values: list[str]) -> Any:
    import mteb
    from mteb._create_dataloaders import create_dataloader

    metadata = mteb.get_task("STSBenchmark").metadata
    loader = create_dataloader(Dataset.from_dict({"text": values}), task_metadata=metadata, input_column="text")
    return {"inputs": loader, "task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}


def test_texts_are_texts_whatever_they_look_like(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("logo.png")
    names = ["logo.png", "missing.png", "https://example.org/a.jpg", "data:image/png;base64,AAAA"]
    found = MTEBModel(model, reasoning="never").encode(**texts_of(names))
    np.testing.assert_allclose(found, model.encode([{"text": name} for name in names], reasoning="never"), atol=1e-6)


@pytest.mark.parametrize("reasoning", ["never", "always"])
def test_empty_texts_are_an_empty_turn_and_are_counted(reasoning, model, caplog):
    adapted = MTEBModel(model, reasoning=reasoning, max_reasoning_tokens=2)
    found = adapted.encode(**texts_of(["a", "", "b", " \n"]))
    assert "2 of 4 texts are empty; embedded as an empty turn" in caplog.text
    np.testing.assert_allclose(found[[0, 2]], adapted.encode(**texts_of(["a", "b"])), atol=1e-5)
    np.testing.assert_allclose(found[1], found[3], atol=1e-6)
    assert np.abs(found[1] - found[0]).max() > 1e-4
    with pytest.raises(ValueError, match="it is empty"):
        model.encode([""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resoning": "never"}, "'resoning' is not known; allowed: reasoning"),
        ({"name": "x"}, "allowed: an id, org/name"),
    ],
)
def test_wrong_options_are_errors(options, message, model):
    with pytest.raises(ValueError, match=message):
        MTEBModel(model, **options)


@pytest.mark.filterwarnings("ignore:.* was given in encode_kwargs:UserWarning")
@pytest.mark.parametrize("options", [{"resoning": "never"}, {"reasoning": "often"}])
def test_wrong_options_are_errors_under_mteb(options, model, make_task, tmp_path):
    with pytest.raises(ValueError, match="'resoning'|reasoning='often' is not known"):
        evaluate(MTEBModel(model), make_task("text"), tmp_path, **options)
