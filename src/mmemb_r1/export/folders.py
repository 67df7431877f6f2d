"""What all exports have in common: a new folder that is written whole, whole weights, and what the card says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from mmemb_r1.modeling.files_mmemb_r1 import as_new
from mmemb_r1.runs import replaced_file
from mmemb_r1.sentence_transformers import MMEmbR1

KEPT = ("license", "license_name", "license_link", "language", "base_model", "datasets")  # of the checkpoint's card


def check_new(folder: str | Path) -> None:
    """
    Refuse a folder that holds something.

    Raises:
        ValueError: that names it.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name a new one.")


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """Yield a folder beside the one that is named; it takes that one's place when the block ends without an error."""
    # absolute, so that a checkpoint that was loaded from there is not touched by way of a link
    with replaced_file(Path(folder).resolve()) as made:
        made.mkdir()
        yield made
        as_new(made.rglob("*.safetensors"))


def check_weights(inner: Any) -> None:
    """
    Refuse weights that are not what a plain folder of them would hold.

    Raises:
        ValueError: for adapters that are not merged, and quantised weights.
    """
    if getattr(inner, "_hf_peft_config_loaded", False) or hasattr(inner, "peft_config"):  # by transformers, by peft
        raise ValueError(
            "The checkpoint's adapters are not merged into its weights. Merge them with load_adapters and merged of "
            "mmemb_r1.training.adapters, save the model, and export that."
        )
    if getattr(inner, "hf_quantizer", None) is not None:
        raise ValueError("The weights are quantised; load the checkpoint without quantisation, and export that.")


def card_facts(model: MMEmbR1) -> dict[str, Any]:
    """Read from the checkpoint's card what is as true of what is exported."""
    text = model._model_card_text
    told = ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text else {}
    return {name: told[name] for name in KEPT if told.get(name)}
