"""From an Atlas on disk back to what it was made of: the question behind each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .splits import split_questions
from .tables import NAME_TASKS, NOTO_TASK, make_pair_id
from .tasks import Question
from .world import World, make_world

if TYPE_CHECKING:
    from .build import Atlas


def recall(atlas: Atlas) -> tuple[World, dict[str, Question]]:
    """The world that an Atlas shows, and pair id -> the question of that pair.

    Args:
        atlas (`Atlas`): built by this version of the package from the installed sources.

    Raises:
        ValueError: it was built by another version or from other sources.
        ImportError: a source package is missing (`pip install 'mmemb-r1[atlas]'`).
    """
    arguments = atlas.manifest["arguments"]
    world = make_world(*(arguments[name] for name in ("size", "num_objects", "num_countries")))
    asked: dict[str, Question] = {}
    by_split = split_questions(world, seed=arguments["seed"], generated_rows=arguments["generated_rows"])
    for split, questions in by_split.items():
        for question in questions:
            asked[make_pair_id(split, question)] = question
            if question.task in NAME_TASKS:
                asked[make_pair_id(split, question, NOTO_TASK)] = question
    for pairs in atlas.pairs.values():
        columns = (pairs[column] for column in ("pair_id", "target_id", "query_rationale", "target_rationale"))
        for pair_id, target_id, *rationales in zip(*columns, strict=True):
            known = asked.get(pair_id)
            stated = known and [known.answer, [*known.rationale], [*known.answer_rationale]]
            if stated != [target_id, *rationales]:
                raise ValueError(
                    f"The Atlas in {str(atlas.directory)!r} was built by another version of the package or of its "
                    f"sources (see its pair {pair_id!r}). Build it again: mmemb-r1 atlas build --output "
                    f"{atlas.directory}"
                )
    return world, asked
