"""
Start from a published embedder: recognise it, and keep its vectors.

A recipe, one YAML file of `known/` or your own, says how prompts are made and where vectors are read. `template`
writes it as the chat template that the model is saved with, `plain` writes it out a second time in plain transformers
calls, and `proof` compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1._lazy import lazy_attributes

if TYPE_CHECKING:
    from mmemb_r1.recipes.conversion import Converted, convert, find_recipe
    from mmemb_r1.recipes.recipe import Recipe, known_recipes, load_recipe

__all__ = ["Converted", "Recipe", "convert", "find_recipe", "known_recipes", "load_recipe"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Converted": "mmemb_r1.recipes.conversion",
        "Recipe": "mmemb_r1.recipes.recipe",
        "convert": "mmemb_r1.recipes.conversion",
        "find_recipe": "mmemb_r1.recipes.conversion",
        "known_recipes": "mmemb_r1.recipes.recipe",
        "load_recipe": "mmemb_r1.recipes.recipe",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
