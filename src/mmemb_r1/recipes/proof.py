"""Compare a converted model with its recipe written out in plain transformers calls, on ten inputs made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor

import mmemb_r1
from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.recipes.plain import plain_reasoned_vector, plain_vector
from mmemb_r1.recipes.recipe import Recipe
from mmemb_r1.seeding import seeded_random
from mmemb_r1.sentence_transformers import MMEmbR1

PROOF_FILE = "proof.json"
TOLERANCE = 1e-4  # largest difference of two numbers of a vector, in float32
LEAST_COSINE = 0.995  # in 16 bits: 28 random layers gave 0.9990 in bfloat16, batched against one by one
REASONED_INPUTS, REASONED_TOKENS = 3, 8
LIMITS = ("max_text_tokens", "max_image_tokens", "truncate_dim")  # of a user, which are no part of a recipe
WORDS = "harbour stone yellow counts river letter engine seven window north paper quiet bridge apple".split()


def library_versions() -> dict[str, str]:
    """Tell which versions of the libraries make the vectors."""
    return {
        "mmemb-r1": mmemb_r1.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Proof:
    """
    Hold how far a converted model is from its recipe.

    Attributes:
        recipe: name of the recipe.
        dtype: in which both ways were computed.
        direct: input -> largest difference of a number of its direct vector.
        reasoned: the same of reasoned vectors, for checkpoints that think by themselves; otherwise empty.
        cosine: smallest cosine of the two vectors of an input.
        versions: of the libraries. Default: those that are used.
    """

    recipe: str
    dtype: str
    direct: dict[str, float]
    reasoned: dict[str, float]
    cosine: float
    versions: dict[str, str] = field(default_factory=library_versions)

    @property
    def largest(self) -> float:
        """Get the largest difference of all; NaN if one is."""
        return max([*self.direct.values(), *self.reasoned.values()], key=or_infinite)

    @property
    def worst(self) -> str:
        """Name the input whose direct vector differs most."""
        return max(self.direct, key=lambda name: or_infinite(self.direct[name]))

    @property
    def holds(self) -> bool:
        """Tell whether the vectors are the same, up to rounding."""
        return self.largest <= TOLERANCE if self.dtype == "float32" else self.cosine >= LEAST_COSINE

    def described(self) -> str:
        """Say it in one line."""
        return (
            f"largest difference {self.largest:.1e} and smallest cosine {self.cosine:.6f} on {len(self.direct)} inputs"
            f" in {self.dtype}, {'within' if self.holds else 'beyond'} what rounding explains"
        )

    def content(self) -> dict[str, Any]:
        """Get what is saved as `proof.json`."""
        return {**asdict(self), "largest": self.largest, "holds": self.holds}


@contextmanager
def unlimited(config: Any, limits: Sequence[str]) -> Iterator[None]:
    """Lift limits, fields of a config, for the length of a block."""
    kept = {name: getattr(config, name) for name in limits}
    try:
        for name in limits:
            setattr(config, name, None)
        yield
    finally:
        for name, limit in kept.items():
            setattr(config, name, limit)


def or_infinite(number: float) -> float:
    """Rank NaN above all numbers: compared as it is, it is passed over."""
    return math.inf if math.isnan(number) else number


def proof_inputs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Make the ten inputs: those of [`sample_inputs`], and the shortest that the recipe takes."""
    empty = {"text": EmptyText()} if recipe.prompt.empty or recipe.prompt.turn_start else {"text": "?"}
    return sample_inputs() | {"nothing" if empty["text"] == "" else "one character": empty}


def sample_inputs() -> dict[str, dict[str, Any]]:
    """Make nine inputs, name -> a dict with any of `text`, `image` (a list of pictures) and `instruction`."""
    order = seeded_random(0, "proof")
    long = " ".join(order.choice(WORDS) for _ in range(250))
    red, blue, wide = _picture("red", 224, 224), _picture("navy", 160, 224), _picture("green", 448, 160)
    return {
        "text": {"text": "A red square with a line through it"},
        "other scripts": {"text": "赤い四角形。\nКрасный квадрат 🟥"},
        "long text": {"text": long},
        "picture": {"image": [red]},
        "wide picture and text": {"image": [wide], "text": "What colour is the background?"},
        "two pictures and text": {"image": [red, blue], "text": "Which of the two is larger?"},
        "instruction": {"text": "Peru", "instruction": "Find the capital of the country"},
        "instruction with a full stop": {"text": "Peru", "instruction": "Find the capital of the country."},
        "instruction and picture": {
            "image": [blue],
            "instruction": "Find a picture like this one",
            "text": "at night",
        },
    }


def _picture(colour: str, width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), colour)
    drawing = ImageDraw.Draw(picture)
    drawing.ellipse((width // 4, height // 4, width // 2, height // 2), fill="white")
    drawing.line((0, height, width, 0), fill="yellow", width=9)
    return picture


def plain_vectors(recipe: Recipe, vlm: Any, processor: Any) -> dict[str, Tensor]:
    """Embed the ten inputs directly in plain calls; to be done before the backbone becomes part of a model."""
    vectors, inputs = {}, proof_inputs(recipe)
    with progress_bar() as bar, step_of(bar, "Inputs in plain calls", len(inputs)) as advance:
        for name, value in inputs.items():
            vectors[name] = plain_vector(recipe, vlm, processor, value)
            advance(1)
    return vectors


def prove(recipe: Recipe, model: MMEmbR1, plain: Mapping[str, Tensor]) -> Proof:
    """
    Compare a converted model with what plain calls gave.

    Args:
        recipe: the recipe.
        model: the converted model, in the same dtype as the backbone was.
        plain: what [`plain_vectors`] returned.
    """
    inputs, cosines = proof_inputs(recipe), [1.0]
    config = model[0].model.config

    def difference(ours: Sequence[float], theirs: Tensor) -> float:
        mine = torch.as_tensor(ours).float().cpu()
        cosines.append(float(torch.cosine_similarity(mine, theirs.cpu(), dim=0)))
        return float((mine - theirs.cpu()).abs().max())

    with unlimited(config, LIMITS):
        direct = model.encode(list(inputs.values()), reasoning="never", convert_to_tensor=True, show_progress_bar=True)
        reasoned = _reasoned(recipe, model, dict(list(inputs.items())[:REASONED_INPUTS]), difference)
    return Proof(
        recipe=recipe.name,
        dtype=str(model[0].model.dtype).removeprefix("torch."),
        direct={name: difference(row, plain[name]) for name, row in zip(inputs, direct, strict=True)},
        reasoned=reasoned,
        cosine=min(cosines, key=lambda cosine: -or_infinite(cosine)),
    )


def _reasoned(
    recipe: Recipe, model: MMEmbR1, inputs: Mapping[str, Any], difference: Callable[[Any, Tensor], float]
) -> dict[str, float]:
    """Compare reasoned vectors, where the checkpoint thinks by itself."""
    if not recipe.thinks:
        return {}
    inner = model[0].model
    rows = model.encode(
        list(inputs.values()), reasoning="always", max_reasoning_tokens=REASONED_TOKENS, convert_to_tensor=True
    )
    differences = {}
    for row, (name, value) in zip(rows, inputs.items(), strict=True):
        suppressed = inner.config.suppressed_token_ids
        theirs, _ = plain_reasoned_vector(
            recipe, inner.vlm, model.processor, value, suppressed=suppressed, most=REASONED_TOKENS
        )
        differences[name] = difference(row, theirs)
    return differences
