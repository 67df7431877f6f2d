"""Fill the model card's template from a saved checkpoint and from the results of its evaluation. Nothing is made up:
what is not known is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from mmemb_r1.evaluation.results import Results, load_results
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config

TAGS = ["sentence-transformers", "mmemb-r1", "multimodal", "embeddings", "reasoning", "retrieval"]


def build_model_card(
    directory: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    base_model: str | None = None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Render the README.md of a checkpoint.

    Args:
        directory: The saved checkpoint. Its name is the model's name in the card.
        results: A file that [`save_results`] wrote; without it the card has no results.
        base_model: Hub id of the backbone, if it was not trained from scratch.
        training: What to say of the training, name -> value, say `{"steps": 1200}`.
        license: Identifier of the licence of the weights, as the Hub knows it; the card names none without it.

    Returns:
        The card: a YAML header with the Hub's metadata, and Markdown.

    Raises:
        ValueError: If `directory` holds no checkpoint, or `results` something else than results.
    """
    folder = Path(directory).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{directory} holds no checkpoint: there is no config.json in it; save the model there first")
    measured = None if results is None else load_results(results)
    metadata = ModelCardData(
        model_name=folder.name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        license=license,
        base_model=base_model,
        tags=TAGS,
        eval_results=None if measured is None else _eval_results(measured),
    )
    template = Template(files(__package__).joinpath("template.md").read_text(encoding="utf-8"))
    body = template.substitute(
        name=folder.name,
        facts=_facts(folder, base_model),
        sections="".join([_training_section(training or {}), _results_section(measured)]),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body.rstrip()}\n"


def _facts(folder: Path, base_model: str | None) -> str:
    config = MMEmbR1Config.from_pretrained(folder)
    dimensions = config.truncate_dim or config.embedding_dim or config.hidden_size
    facts: dict[str, Any] = {"backbone": base_model or config.vlm_config.model_type}
    if parameters := _num_parameters(folder):
        facts["parameters"] = f"{parameters:,}"
    facts |= {
        "embedding dimensions": dimensions,
        "Matryoshka dimensions": ", ".join(map(str, config.matryoshka_dims)) or None,
        "pooling": config.pooling,
        "reasoning by default": config.reasoning,
        "gate threshold": config.gate_threshold,
        "rationale budget": f"{config.max_reasoning_tokens} tokens, {config.max_reasoning_rounds} rounds at most",
    }
    return _table(["", ""], ([name, value] for name, value in facts.items() if value is not None))


def _num_parameters(folder: Path) -> int:
    """Parameters in the checkpoint's safetensors files, read from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def _training_section(training: Mapping[str, Any]) -> str:
    return f"\n## Training\n\n{_table(['', ''], training.items())}\n" if training else ""


def _results_section(results: Results | None) -> str:
    if results is None:
        return ""
    modes = results["config"]["modes"]
    split = f", {results['config']['split']} split" if "split" in results["config"] else ""
    rows = [[task, *_scores(result, modes)] for task, result in results["tasks"].items()]
    rows += [[f"**mean: {name}**", *_scores(result, modes)] for name, result in results["summary"].items()]
    overall = results["summary"]["all"]["modes"]
    costs = [
        [
            mode,
            f"{overall[mode]['invocation_ratio']:.0%}",
            f"{overall[mode]['mean_reasoning_tokens']:.1f}",
            f"{1000 * overall[mode]['seconds_per_query']:.1f}",
        ]
        for mode in modes
    ]
    return (
        f"\n## Results\n\nAtlas{split}: share of queries whose answer is ranked first (hit@1), for each reasoning "
        "mode of the queries. Answers are embedded directly; ties count as misses. *Majority* always gives the task's "
        "most frequent training answer; *no image* is the better of never and always without the query's pictures.\n\n"
        + _table(["task", "queries", "majority", "no image", *modes], rows)
        + "\n\nMeans over the tasks:\n\n"
        + _table(["mode", "reasons on", "rationale tokens per query", "ms per query"], costs)
        + "\n"
    )


def _scores(result: Mapping[str, Any], modes: list[str]) -> list[Any]:
    no_image = max(result.get("no_image", {}).values(), default=None)
    values = [result.get("majority"), no_image, *(result["modes"][mode]["hit@1"] for mode in modes)]
    return [result["n"], *("" if value is None else f"{value:.3f}" for value in values)]


def _eval_results(results: Results) -> list[EvalResult]:
    """The means over tasks for the Hub's model index; the card's table holds the single tasks."""
    return [
        EvalResult(
            task_type="retrieval",
            task_name="Multimodal retrieval",
            dataset_type="atlas",
            dataset_config=group,  # the Hub merges results whose datasets differ in nothing but their names
            dataset_name=f"Atlas ({group})",
            dataset_split=results["config"].get("split"),
            metric_type="hit_at_1",
            metric_name=f"hit@1, reasoning={mode}",
            metric_value=round(numbers["hit@1"], 4),
        )
        for group, summary in results["summary"].items()
        for mode, numbers in summary["modes"].items()
    ]


def _table(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
