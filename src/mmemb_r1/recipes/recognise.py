"""Recognise a published embedder by its config and files, before any weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import cached_file

from mmemb_r1.modeling.loading_mmemb_r1 import damaged_file
from mmemb_r1.modeling.tokens_mmemb_r1 import EMBED
from mmemb_r1.recipes.recipe import NEW_TOKENS, Recipe, Signs, known_recipes, load_recipe

ADAPTER_FILE, MODULES_FILE = "adapter_config.json", "modules.json"
COMPLETE_FILES = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
EMBEDDER_FILES = ("sparse_info.json", "embedding_chat_template.jinja")
EMBEDDER_TAGS = {"feature-extraction", "sentence-similarity", "sentence-transformers", "visual-document-retrieval"}
EMBEDDER_TOKENS = ("<emb>", "<embedding>", "<disc_emb>", "<gen_emb>")


@contextmanager
def reading_checkpoint(name: str) -> Iterator[None]:
    """Turn whatever a library says of a damaged checkpoint that is read in the block into a `ValueError` naming it."""
    try:
        yield
    except (ImportError, OSError):  # they say what is missing, and where
        raise
    except Exception as error:  # tokenizers and safetensors have no narrower one in common
        reason = damaged_file(name) or " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{name} can't be loaded: one of its files is damaged, cut off or of another kind of checkpoint "
            f"({reason:.300}). Download it again, whole; a file of a few hundred bytes that should be large is a "
            "pointer of Git LFS."
        ) from error


@dataclass(frozen=True)
class Checkpoint:
    """
    Look into a checkpoint without loading it.

    Attributes:
        name: a folder or a Hub id.
        revision: of the Hub id.
        base: model that adapters are merged into, instead of the one that they name.
    """

    name: str
    revision: str | None = None
    base: str | None = None

    def file(self, name: str) -> Path | None:
        """Find a file of the checkpoint, on this machine after a download; `None` if it has none of that name."""
        if Path(self.name).is_dir():
            path = Path(self.name, name)
            return path if path.is_file() else None
        if name not in self._found:
            options = {"revision": self.revision, "_raise_exceptions_for_missing_entries": False}
            self._found[name] = cached_file(self.name, name, **options)
        found = self._found[name]
        return None if found is None else Path(found)

    def json(self, name: str) -> Any:
        """Read a JSON file of the checkpoint; `None` if it is not there."""
        path = self.file(name)
        if path is None:
            return None
        with reading_checkpoint(str(path)):
            return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def _found(self) -> dict[str, str | None]:
        """Keep what the Hub said of files, by their names."""
        return {}

    @cached_property
    def backbone(self) -> tuple[str, str | None]:
        """Get name and revision of the complete weights: this checkpoint's, or those that its adapters belong to."""
        adapter = self.json(ADAPTER_FILE)
        if adapter is None:
            return self.name, self.revision
        if any(map(self.file, COMPLETE_FILES)):
            raise ValueError(
                f"{self.name} holds adapters beside complete weights, and nothing says which of them count. Remove "
                f"{ADAPTER_FILE}, or the weights ({' or '.join(COMPLETE_FILES)}), in a copy."
            )
        if not isinstance(adapter, Mapping):
            raise ValueError(f"{ADAPTER_FILE} of {self.name} is {adapter!r:.80}; allowed: a JSON object.")
        named = self.base or adapter.get("base_model_name_or_path")
        if not named:
            raise ValueError(
                f"{self.name} holds adapters and does not name their base model; say it: --base ID_OR_PATH."
            )
        if not isinstance(named, str):
            raise ValueError(
                f"{ADAPTER_FILE} of {self.name} names the base model {named!r:.80}; say it: --base ID_OR_PATH."
            )
        return named, None if self.base else adapter.get("revision")

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Get what the config.json of the complete weights says; empty if there is none."""
        name, revision = self.backbone
        options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
        with reading_checkpoint(name):
            found = PretrainedConfig.get_config_dict(name, **options)[0]
        if not isinstance(found, Mapping):
            raise ValueError(f"config.json of {name} is {found!r:.80}; allowed: a JSON object. Download it again.")
        return found

    @cached_property
    def tokens(self) -> frozenset[str]:
        """Get the tokens of the checkpoint's own tokenizer; none if it has no tokenizer."""
        if not any(map(self.file, TOKENIZER_FILES)):
            return frozenset()
        with reading_checkpoint(self.name):
            tokenizer = AutoTokenizer.from_pretrained(self.name, revision=self.revision, trust_remote_code=False)
        return frozenset(tokenizer.get_vocab())

    @property
    def names(self) -> list[str]:
        """List what patterns are compared with: the last part of the name, and the model of a folder in a cache."""
        parts = Path(self.name).resolve().parts if Path(self.name).is_dir() else Path(self.name).parts
        cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
        return [name.lower() for name in (parts[-1], *cached)]


def fits(signs: Signs, checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint has all that these signs ask for."""
    return (
        (not signs.names or any(fnmatchcase(name, one.lower()) for name in checkpoint.names for one in signs.names))
        and all(checkpoint.file(name) is not None for name in signs.files)
        and (signs.model_type is None or checkpoint.config.get("model_type") == signs.model_type)
        and (not signs.tokens or set(signs.tokens) <= checkpoint.tokens)
    )


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """
    Find the known recipe that a checkpoint is for.

    Returns:
        The recipe; where several fit, the one with the most signs. `None` for a checkpoint that is no embedder, and
        for what is no vision-language model.

    Raises:
        ValueError: for one that is an embedder by all appearances, and of no known recipe.
    """
    if checkpoint.config.get("model_type") not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return None
    found = [
        (signs.number, recipe)
        for recipe in map(load_recipe, known_recipes())
        for signs in recipe.recognise
        if fits(signs, checkpoint)
    ]
    if found:
        return max(found, key=lambda one: one[0])[1]
    if (reason := _embedder_sign(checkpoint)) is not None:
        raise ValueError(
            f"{checkpoint.name} seems to be a trained embedder ({reason}), and no known recipe fits it: its vectors "
            "would be lost. Say how its prompts are made and its vectors are read: --recipe with one of "
            f"{', '.join(known_recipes())}, or with a file of your own; or --recipe none, to begin with the weights "
            "alone."
        )
    return None


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise a ValueError if a checkpoint has no tokenizer: transformers would make one that knows no text."""
    if not any(map(checkpoint.file, TOKENIZER_FILES)):
        names = ", ".join(TOKENIZER_FILES)
        raise ValueError(f"{checkpoint.name} has no tokenizer: none of {names}. Download it whole.")


def check_tokens(recipe: Recipe, tokens: frozenset[str] | set[str]) -> None:
    """Raise a ValueError if a recipe reads at a token that the tokenizer does not have, and that is not added."""
    for role, token in (("read.marker", recipe.read.marker), ("thought.end", recipe.thought.end)):
        if token not in tokens and token not in NEW_TOKENS:
            raise ValueError(
                f"The recipe {recipe.name} needs the token {token!r} ({role}), which the checkpoint's tokenizer does "
                f"not have: it is for another checkpoint. Only {EMBED} and the tags of rationales are added."
            )


def _embedder_sign(checkpoint: Checkpoint) -> str | None:
    """Name what shows that a checkpoint was trained to embed; `None` if nothing does."""
    modules = checkpoint.json(MODULES_FILE)
    kinds = [str(module.get("type", "")) for module in modules or () if isinstance(module, Mapping)]
    if any("Pooling" in kind or "Embed" in kind for kind in kinds):
        return f"its {MODULES_FILE} pools states to a vector"
    if checkpoint.file(ADAPTER_FILE) is not None:
        return f"it has an {ADAPTER_FILE}, and transformers would load its base model alone or guess how to pool"
    if "embed" in checkpoint.names[0]:
        return "its name says so"
    if (card := checkpoint.file("README.md")) is not None:
        said = ModelCard(
            card.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True
        ).data.to_dict()
        if tags := sorted({said.get("pipeline_tag"), *(said.get("tags") or ())} & EMBEDDER_TAGS):
            return f"its README.md has the tag {tags[0]}"
    for name in EMBEDDER_FILES:
        if checkpoint.file(name) is not None:
            return f"it has the file {name}"
    code = checkpoint.config.get("auto_map")
    code = code.values() if isinstance(code, Mapping) else ()
    if any("embed" in str(name).lower() for name in code):
        return f"its config names code for embedding, {', '.join(map(str, code))}"
    if tokens := [token for token in EMBEDDER_TOKENS if token in checkpoint.tokens]:
        return f"its tokenizer has {' and '.join(tokens)}"
    return None
