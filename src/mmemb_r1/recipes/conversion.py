"""Turn a published embedder into a model of this package with the same direct vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmemb_r1.hub.source import cached_commit
from mmemb_r1.modeling.tokens_mmemb_r1 import Controls
from mmemb_r1.recipes.loading import load_backbone, without_appended_tokens
from mmemb_r1.recipes.proof import PROOF_FILE, TOLERANCE, Proof, plain_vectors, prove
from mmemb_r1.recipes.recipe import Recipe, load_recipe
from mmemb_r1.recipes.recognise import Checkpoint, recognise
from mmemb_r1.recipes.template import prompt_template
from mmemb_r1.runs import write_json
from mmemb_r1.sentence_transformers import MMEmbR1

PROOF_DTYPES = ("float32", "weights")
KEPT = ("pooling", "embedding_dim", "normalize")  # fields that would make other vectors of the same states


@dataclass(frozen=True)
class Converted:
    """
    Hold a converted embedder.

    Attributes:
        model: it, in the dtype of its weights.
        recipe: by which it was converted.
        proof: how far its vectors are from the recipe's.
        commit: of the checkpoint on the Hub, where it is known.
    """

    model: MMEmbR1
    recipe: Recipe
    proof: Proof
    commit: str | None

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """
        Save model and proof.

        Args:
            folder: a new one.
            force: also if the proof does not hold.

        Raises:
            ValueError: if the vectors differ by more than rounding explains.
        """
        if not self.proof.holds and not force:
            raise ValueError(
                f"The converted model does not give the vectors of the recipe {self.recipe.name}: "
                f"{self.proof.described()} (allowed: {TOLERANCE:.0e} in float32), the worst of the direct ones for "
                f"{self.proof.worst!r}. Nothing is saved. Another version of transformers may read the checkpoint "
                "otherwise; --force saves it all the same."
            )
        self.model.save_pretrained(str(folder), create_model_card=False)
        write_json(Path(folder, PROOF_FILE), self.proof.content())


def find_recipe(
    name: str, recipe: str | Path | None = None, *, revision: str | None = None, base: str | None = None
) -> Recipe | None:
    """
    Find the recipe for a checkpoint.

    Args:
        name: a folder or a Hub id.
        recipe: `None` to recognise it; the name of a known recipe; a file; `"none"` for a plain vision-language model.
        revision: of the Hub id.
        base: model that adapters are merged into. Default: the one that they name.

    Returns:
        The recipe; `None` for a vision-language model that is no embedder, or with `"none"`.

    Raises:
        ValueError: if there is no such recipe; if the checkpoint is an embedder of no known recipe.
    """
    if recipe is None:
        return recognise(Checkpoint(name, revision, base))
    return None if str(recipe) == "none" else load_recipe(recipe)


def convert(
    name: str,
    recipe: Recipe | str | Path | None = None,
    *,
    revision: str | None = None,
    base: str | None = None,
    dtype: str = "auto",
    proof_dtype: str = "float32",
    **config: Any,
) -> Converted:
    """
    Turn a published embedder into a model with the same direct vectors, to which gate and thought can be taught.

    Args:
        name: a folder or a Hub id.
        recipe: how it makes prompts and reads vectors, see [`find_recipe`]. Default: it is recognised.
        revision: of the Hub id.
        base: model that adapters are merged into. Default: the one that they name.
        dtype: of the weights, say `"bfloat16"`. Default: as they are stored.
        proof_dtype: in which the model is compared with the recipe: `"float32"`, which for 16-bit weights takes
            twice their memory for a while; or `"weights"`, where only the cosines can be compared.
        **config: fields of [`MMEmbR1Config`], which go before the recipe's.

    Returns:
        The model, not saved yet, its recipe, and the proof.

    Raises:
        ValueError: if it is no embedder of a known recipe, or its weights do not fit; for an option that is not known.
        ImportError: if adapters have to be merged and peft is not installed.
    """
    if proof_dtype not in PROOF_DTYPES:
        raise ValueError(f"proof_dtype={proof_dtype!r} is not known; allowed: {', '.join(PROOF_DTYPES)}.")
    if not isinstance(recipe, Recipe):
        found = find_recipe(name, recipe, revision=revision, base=base)
        if found is None:
            raise ValueError(
                f"{name} is a vision-language model that is no known embedder: it has no vectors to keep. Use "
                "MMEmbR1.from_vlm, or pass the recipe."
            )
        recipe = found
    checkpoint = Checkpoint(name, revision, base)
    vlm, processor = load_backbone(recipe, checkpoint, dtype)
    stored = vlm.dtype
    commit = None if recipe.loading == "lora" else cached_commit(name, revision)
    if proof_dtype == "float32":
        vlm = vlm.float()
    if recipe.read.position == "marker":
        recipe = without_appended_tokens(recipe, processor.tokenizer)
    plain = plain_vectors(recipe, vlm, processor)
    recipe = without_appended_tokens(recipe, processor.tokenizer)
    model = MMEmbR1.from_vlm(
        vlm,
        processor,
        controls=controls_of(recipe),
        template=prompt_template(recipe),
        **config_of(recipe, vlm, config),
    )
    proof = prove(recipe, model, plain)
    model[0].model.to(stored)
    return Converted(model, recipe, proof, commit)


def controls_of(recipe: Recipe) -> Controls:
    """Say which tokens end prompts and surround rationales."""
    thought = recipe.thought
    return Controls(
        marker=recipe.read.marker,
        opening=thought.opening,
        end=thought.end,
        closing=thought.closing,
        reasoned_marker=recipe.read.marker if thought.read_at == "marker" else None,
    )


def config_of(recipe: Recipe, vlm: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Put together the fields of the config: what reads vectors from the recipe, then what the caller gave."""
    reading = {"embed_position": recipe.read.position, "embed_state": recipe.read.state, "spaces": recipe.spaces}
    if changed := [name for name in (*reading, *KEPT) if name in given]:
        raise ValueError(
            f"{changed[0]}={given[changed[0]]!r} would change the vectors that the recipe {recipe.name} keeps. Leave "
            "it out; or begin with the weights alone, --recipe none; or bring a recipe file of your own."
        )
    # what was never trained to read a rationale where ours goes may read it as text
    form = {"thinker_form": "tokens" if recipe.thinks else "text"}
    fields = {**form, **recipe.config, **given, **reading}
    width = vlm.config.get_text_config().hidden_size
    dims = recipe.config.get("matryoshka_dims")
    if isinstance(dims, list) and "matryoshka_dims" not in given:  # of all sizes of a checkpoint
        fields["matryoshka_dims"] = [dim for dim in dims if not isinstance(dim, int) or dim <= width]
    return fields
