"""Fill the model card's template from a saved checkpoint and the files beside it; what no file says is left out."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from mmemb_r1.evaluation.run_folder import MEASURED_FILES, Results
from mmemb_r1.fingerprint import folder_digest
from mmemb_r1.formatting import table
from mmemb_r1.model_card import sections, sources
from mmemb_r1.model_card.record import gate_is_trained, recorded_base_model
from mmemb_r1.model_card.sources import RESULTS_FILE, TRAINING_FILE, curve_name, curves_in
from mmemb_r1.model_card.validation import header_faults, is_repo_id, read_header, validate_model_card
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.runs import replaced_file

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
TAGS = ["sentence-transformers", "mmemb-r1", "multimodal", "embeddings", "reasoning", "retrieval"]
DECIDES = {True: "decides for each input whether to reason first", False: "can reason about an input first"}
KEPT = ("license", "license_name", "license_link", "language", "base_model", "datasets", "co2_eq_emissions")


def build_model_card(
    directory: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    base_model: str | Sequence[str] | None = None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    *,
    curve: str | os.PathLike[str] | None = None,
    datasets: Sequence[str] | None = None,
    emissions: str | os.PathLike[str] | float | None = None,
    repo_id: str | None = None,
    keep: bool = False,
    card: str | None = None,
) -> str:
    """Render the README.md of a checkpoint: a YAML header with the Hub's metadata, and Markdown.

    Files in the checkpoint are found by their names and taken to be about this model; arguments override them. A
    section without a file is left out.

    Args:
        directory: The saved checkpoint.
        results: A file that [`save_results`] wrote. Default: `results.json` in `directory`.
        base_model: Hub id of the backbone, if it was not trained from scratch.
        training: What to say of the training, name -> value. Default: what the trainers wrote to `training.json`.
        license: Identifier of the licence of the weights, as the Hub knows it; the card names none without it.
        curve: Scores over the gate's threshold, see [`read_curve`]. Default: `curve.csv` or `curve-SPLIT.csv` in
            `directory`. The card shows the picture of the same name, PNG, that lies beside it.
        datasets: Hub ids of the training data.
        emissions: CodeCarbon's emissions.csv, or grams of CO2 equivalents. The file is not looked for in `directory`:
            it holds coordinates, which should not be published by accident.
        repo_id: The model's id on the Hub, which the snippets then use. Default: the name of `directory`.
        keep: Take what no file holds (licence, language, base model, datasets, emissions, repository) from the
            README.md that is there. Defaults to `False`: it may be the card of the model that training began with.
        card: The text of a card to take this from, in place of README.md's.

    Raises:
        ValueError: If `directory` holds no checkpoint, a file is damaged, or the Hub would refuse an id or licence.
    """
    folder = Path(directory).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{directory} holds no checkpoint: there is no config.json in it; save the model there first")
    if repo_id is not None and (repo_id.count("/") != 1 or not is_repo_id(repo_id)):
        raise ValueError(f"repo_id is {repo_id!r}; allowed: an id on the Hub, org/name")
    if card is None and keep and (folder / CARD_FILE).is_file():
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
    header = _read_kept(card or "", folder / CARD_FILE)
    name = repo_id or header.pop("repo_id", None) or folder.name
    if license is not None:  # the name and the text of another licence go with it
        header = {key: value for key, value in header.items() if key not in ("license_name", "license_link")}
    given = {
        "license": license,
        "base_model": base_model if base_model is None or isinstance(base_model, str) else list(base_model),
        "datasets": None if datasets is None else list(datasets),
        "co2_eq_emissions": None if emissions is None else sources.read_emissions(emissions),
    }
    header |= {key: value for key, value in given.items() if value is not None}
    measured, is_stale = _measured_results(folder, results)
    if training is None:
        training = _read_if_there(None, folder / TRAINING_FILE, sources.read_training) or {}
    if (recorded := recorded_base_model(training)) is not None:
        if base_model is not None and recorded not in (base_model, *base_model):
            raise ValueError(f"base_model is {base_model!r}, but the record of the training names {recorded}")
        header["base_model"] = recorded if base_model is None else given["base_model"]
    metadata = ModelCardData(
        model_name=name,
        library_name="sentence-transformers",
        pipeline_tag="feature-extraction",
        tags=TAGS,
        eval_results=None if measured is None else _eval_results(measured) or None,
        **header,
    )
    if faults := list(header_faults(metadata.to_dict())):
        raise ValueError(faults[0][1])
    body = _body(folder, name, header, training, measured, curve, is_stale)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body.rstrip()}\n"


def _body(
    folder: Path,
    name: str,
    header: Mapping[str, Any],
    training: Mapping[str, Any],
    results: Results | None,
    curve: str | os.PathLike[str] | None,
    is_stale: bool,
) -> str:
    """Fill the template with the sections for which there is a file."""
    config, videos = MMEmbR1Config.from_pretrained(folder), _takes_videos(folder)
    limits = sections.limits(config, results, training, header)
    if is_stale:
        limits.append(f"{RESULTS_FILE} beside this card measured other files than these, and is not shown.")
    parts = [sections.training_section(training, header.get("datasets") or [])]
    if results is not None:
        parts += [sections.results_section(results), sections.cost_section(results)]
    curve_file = Path(curve) if curve is not None else sources.find_curve(folder)
    if curve_file is not None:
        picture = Path(curve_name(curve_file)).with_suffix(".png").name
        has_picture = curve_file.with_suffix(".png").is_file()
        parts.append(sections.curve_section(sources.read_curve(curve_file), picture if has_picture else None))
    if "co2_eq_emissions" in header:
        parts.append(sections.carbon_section(header["co2_eq_emissions"]))
    return Template(files(__package__).joinpath("template.md").read_text(encoding="utf-8")).substitute(
        name=name,
        media="text, images, videos" if videos else "text, images",
        keys="`text`, `image`, `video` and `instruction`" if videos else "`text`, `image` and `instruction`",
        decides=DECIDES[gate_is_trained(training) is True],
        facts=_model_table(folder, config, header.get("base_model")),
        limits="\n".join(f"- {item}" for item in limits),
        sections="".join(parts),
    )


def write_model_card(
    directory: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    training: Mapping[str, Any] | None = None,
    *,
    curve: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Path:
    """Render, check and write the README.md of a checkpoint, whole or not at all, and return its path.

    The arguments are those of [`build_model_card`]. What lies elsewhere is copied into the checkpoint, so that the
    card can be made again from it alone: `results` as `results.json`, `training` as `training.json`, `curve` and the
    picture beside it under their own names. ValueError if a curve of another name, or its picture, lies there already.
    """
    folder = Path(directory)
    text = build_model_card(folder, results, training=training, curve=curve, **options)
    if curve is not None:
        _copy_curve(Path(curve), folder)
    if results is not None:
        _copy(Path(results), folder / RESULTS_FILE)
    if training is not None:
        with replaced_file(folder / TRAINING_FILE) as temporary:
            temporary.write_text(json.dumps(dict(training), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    validate_model_card(text, folder)
    with replaced_file(folder / CARD_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / CARD_FILE


def _read_kept(text: str, card: Path) -> dict[str, Any]:
    """Read what only the header of an earlier card holds, with the model's id under `repo_id`."""
    if not text.startswith("---"):
        return {}
    header, _ = read_header(text)
    for key, fault in header_faults(header):
        if key in ("model-index", *KEPT):
            raise ValueError(f"{card}: {fault}; correct its header, or remove the file")
    kept = {key: header[key] for key in KEPT if header.get(key) is not None}
    if isinstance(kept.get("datasets"), str):  # the Hub takes one for a list of one, and a number for grams
        kept["datasets"] = [kept["datasets"]]
    if isinstance(kept.get("co2_eq_emissions"), int | float):
        kept["co2_eq_emissions"] = {"emissions": kept["co2_eq_emissions"]}
    index = header.get("model-index") or [{}]
    name = header.get("model_name") or index[0].get("name")
    return kept | ({"repo_id": name} if isinstance(name, str) and name.count("/") == 1 and is_repo_id(name) else {})


def _read_if_there(given: Any, default: Path, read: Callable[[Any], Any]) -> Any:
    path = given if given is not None else default if default.is_file() else None
    return None if path is None else read(path)


def _measured_results(folder: Path, given: str | os.PathLike[str] | None) -> tuple[Results | None, bool]:
    """
    Read the results that are of this checkpoint, and tell whether there are others that are not.

    Those that say which files they measured have to be of these: given ones that are not are an error, and those in
    the folder, which may be older than its weights, are left out.
    """
    results = _read_if_there(given, folder / RESULTS_FILE, sources.read_results)
    measured = None if results is None else results["config"].get(MEASURED_FILES)
    if measured is None or measured == folder_digest(folder):
        return results, False
    if given is not None and Path(given).resolve() != folder / RESULTS_FILE:
        raise ValueError(
            f"{given} measured another checkpoint than {folder} holds, or an earlier state of it; evaluate it: "
            f"mmemb-r1 evaluate --model {folder} ..."
        )
    logger.warning("%s measured other files than these, and is not shown; evaluate again", folder / RESULTS_FILE)
    return None, True


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        with replaced_file(target) as temporary:
            shutil.copyfile(source, temporary)


def _copy_curve(source: Path, folder: Path) -> None:
    target = folder / curve_name(source)
    others = [path for path in curves_in(folder) if path.name != target.name]
    if others:
        raise ValueError(f"{folder} holds {others[0].name} already, and a card shows one curve: remove it")
    picture, shown = source.with_suffix(".png"), target.with_suffix(".png")
    if shown.exists() and not picture.exists():
        raise ValueError(f"{shown} is no picture of {source}, which has none beside it: remove it")
    _copy(source, target)
    if picture.exists():
        _copy(picture, shown)


def _model_table(folder: Path, config: MMEmbR1Config, base_model: str | list[str] | None) -> str:
    bases = [base_model] if isinstance(base_model, str) else base_model or []
    rounds = config.max_reasoning_rounds
    facts: dict[str, Any] = {"base model": ", ".join(bases) or None, "architecture": config.vlm_config.model_type}
    if parameters := _num_parameters(folder):
        facts["parameters"] = f"{parameters:,}"
    facts |= {
        "embedding dimensions": config.truncate_dim or config.embedding_dim or config.hidden_size,
        "Matryoshka dimensions": ", ".join(map(str, config.matryoshka_dims or [])) or None,
        "pooling": config.pooling,
        "reasoning by default": f"{config.reasoning}, documents {config.document_reasoning}",
        "gate threshold": f"{config.gate_threshold:.6g}",
        "rationale budget": f"{config.max_reasoning_tokens} tokens, {rounds} round{'s' * (rounds > 1)} at most",
    }
    return table(["", ""], ([name, value] for name, value in facts.items() if value is not None))


def _takes_videos(folder: Path) -> bool:
    """Tell whether the checkpoint's processor has a part for videos; some backbones take only pictures."""
    path = folder / "processor_config.json"
    return path.is_file() and "video_processor" in json.loads(path.read_text(encoding="utf-8"))


def _num_parameters(folder: Path) -> int:
    """Count the parameters in the checkpoint's safetensors files, from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def _eval_results(results: Results) -> list[EvalResult]:
    """List the means over tasks for the Hub's model index, if it is known of what; the card has the single tasks."""
    if (dataset := sections.dataset_of(results)) is None:
        return []  # the Hub's index has no place for results of something unnamed
    return [
        EvalResult(
            task_type="retrieval",
            task_name="Multimodal retrieval",
            dataset_type=re.sub(r"[^a-z0-9._-]+", "-", dataset.lower()).strip("-") or "own",
            dataset_config=group,  # the Hub merges results whose datasets differ in nothing but their names
            dataset_name=f"{dataset} ({group})",
            dataset_split=results["config"].get("split"),
            metric_type=sections.metric_of(results, group).replace("@", "_at_"),
            metric_name=f"{sections.metric_of(results, group)}, reasoning={mode}",
            metric_value=round(summary["modes"][mode]["score"], 4),
        )
        for group, summary in results["summary"].items()
        for mode in results["config"]["modes"]
    ]
