"""Make the rows of Atlas's tables: questions and candidates, with their pictures rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS
from mmemb_r1.atlas.hashing import seeded_rng
from mmemb_r1.atlas.knowledge import RELATIONS
from mmemb_r1.atlas.pictures import augment, encode_png, render_digits, render_emoji
from mmemb_r1.atlas.splits import TRAIN, digit_cells
from mmemb_r1.atlas.tasks import MAX_DIGITS, AtlasQuestion
from mmemb_r1.atlas.world import LANGUAGES, World

if TYPE_CHECKING:
    from datasets import Features
    from PIL import Image


def input_feature() -> dict[str, Any]:
    """Describe the column of an input: text or None, a list of pictures (empty for none), instruction or None."""
    from datasets import Image, List, Value

    return {"text": Value("string"), "image": List(Image()), "instruction": Value("string")}


def pair_features() -> Features:
    """Describe the columns of a table of pairs."""
    from datasets import Features, List, Value

    text, segments = Value("string"), List(Value("string"))
    return Features(
        {
            "pair_id": text,
            "task": text,
            "complexity": text,
            "query": input_feature(),
            "target": input_feature(),
            "negatives": List(input_feature()),
            "query_rationale": segments,
            "target_rationale": segments,
            "candidate_set": text,
            "target_id": text,
            "entity": text,
        }
    )


def candidate_features() -> Features:
    """Describe the columns of the table of candidates."""
    from datasets import Features, Value

    return Features({"candidate_set": Value("string"), "candidate_id": Value("string"), "input": input_feature()})


NAME_TASKS = ("picture-name-object", "picture-name-flag")
NOTO_TASK = "picture-name-noto"
PICTURE_SETS = ("picture", *PERCEPTUAL_TASKS)  # sets whose candidates are pictures
Row = dict[str, Any]


class Studio:
    """Render pictures by key: canonical ones once, other renderings each from its own random generator."""

    def __init__(self, world: World, size: int, seed: int) -> None:
        self.world, self.size, self.seed = world, size, seed
        self.encoded: dict[tuple[str, str], bytes] = {}

    def canonical(self, key: str) -> bytes:
        """Render the picture `key` as PNG."""
        return self._once("canonical", key, lambda: encode_png(self._picture(key)))

    def candidate(self, key: str) -> bytes:
        """Render the picture `key` as it is searched, which is not how training shows it, as PNG."""
        return self._once("candidate", key, lambda: self.varied(key, "candidate", key))

    def trained_answer(self, key: str) -> bytes:
        """Render the picture `key` as training shows it beside the canonical one, as PNG."""
        return self._once("answer", key, lambda: self.varied(key, "answer", key))

    def varied(self, key: str, *stream: object) -> bytes:
        """Render the picture `key` in another way, as PNG; the seed and `stream` determine which."""
        return encode_png(augment(self._picture(key), seeded_rng(self.seed, "rendering", *stream)))

    def _once(self, kind: str, key: str, render: Callable[[], bytes]) -> bytes:
        if (kind, key) not in self.encoded:
            self.encoded[kind, key] = render()
        return self.encoded[kind, key]

    def _picture(self, key: str) -> Image.Image:
        for known in (self.world.pictures, self.world.drawn):
            if key in known:
                return known[key]
        cells = [
            self.world.keycaps[cell.digit] if cell.keycap else self.world.digit_images[cell.image]
            for cell in digit_cells(key)
        ]
        return render_digits(cells, self.size)


def make_pair_id(split: str, question: AtlasQuestion, task: str | None = None) -> str:
    """Make the id of the pair that asks a question in a split, as `task` where that is not the question's own."""
    return "/".join(part for part in (split, task or question.task, question.entity, question.variant) if part)


def pair_rows(split: str, questions: Iterable[AtlasQuestion], studio: Studio) -> list[Row]:
    """Make one row per question; training shows canonical pictures, the other splits renderings it never shows."""
    rows = []
    for question in questions:
        pair_id = make_pair_id(split, question)
        if split == TRAIN:
            shown = [studio.canonical(key) for key in question.pictures]
        else:
            shown = [studio.varied(key, pair_id, place) for place, key in enumerate(question.pictures)]
        row = _pair_row(pair_id, question.task, question, shown, _answer(split, question, studio))
        rows.append({**row, "negatives": _negatives(split, question, studio)})
    return rows


def second_font_rows(split: str, questions: Iterable[AtlasQuestion], font: Path, studio: Studio) -> list[Row]:
    """Ask the naming questions again, as `picture-name-noto`, with the pictures of another vendor's font."""
    rows = []
    for question in questions:
        picture = render_emoji(question.entity, font, studio.size) if question.task in NAME_TASKS else None
        if picture is not None:
            pair_id = make_pair_id(split, question, NOTO_TASK)
            rows.append(_pair_row(pair_id, NOTO_TASK, question, [encode_png(picture)], _input(question.answer)))
    return rows


def candidate_rows(world: World, studio: Studio) -> list[Row]:
    """List every candidate of every set once, texts in alphabetical order."""
    texts: dict[str, Iterable[str]] = {
        "name": [*(flag.name for flag in world.flags), *(thing.name for thing in world.objects)],
        "country": [country.name for country in world.countries],
        "digit": map(str, range(10)),
        "sum": map(str, range(9 * MAX_DIGITS + 1)),
    }
    for relation, rule in RELATIONS.items():
        if rule.candidate_set != "country":
            texts[rule.candidate_set] = [country.facts[relation] for country in world.countries]
    for language in LANGUAGES:
        named = (thing for thing in world.objects if thing.hexcode in world.translated)
        texts[f"name-{language}"] = [thing.translations[language] for thing in named]
    found = [(name, text, _input(text)) for name, answers in texts.items() for text in sorted(set(answers))]
    found += [("picture", key, _candidate_picture(key, studio)) for key in world.pictures]
    found += [("time", time, _input(time)) for time in world.clocks.values()]
    found += [(drawing.task, drawing.key, _candidate_picture(drawing.key, studio)) for drawing in world.drawings]
    return [{"candidate_set": name, "candidate_id": answer, "input": made} for name, answer, made in found]


def _answer(split: str, question: AtlasQuestion, studio: Studio) -> Row:
    """Make the target; outside training a picture is the candidate's rendering, which training never shows."""
    if question.candidate_set not in PICTURE_SETS:
        return _input(question.answer)
    if split != TRAIN:
        return _candidate_picture(question.answer, studio)
    # whoever is shown a picture is to find the drawing, not the pixels
    shown = studio.trained_answer if question.candidate_set in PERCEPTUAL_TASKS else studio.canonical
    return _input(pictures=[shown(question.answer)])


def _negatives(split: str, question: AtlasQuestion, studio: Studio) -> list[Row]:
    shown = studio.trained_answer if split == TRAIN else studio.candidate
    return [_input(pictures=[shown(key)]) for key in question.negatives]


def _candidate_picture(key: str, studio: Studio) -> Row:
    return _input(pictures=[studio.candidate(key)])


def _pair_row(pair_id: str, task: str, question: AtlasQuestion, shown: list[bytes], target: Row) -> Row:
    return {
        "pair_id": pair_id,
        "task": task,
        "complexity": question.complexity,
        "query": _input(question.text, shown),
        "target": target,
        "negatives": [],
        "query_rationale": list(question.rationale),
        "target_rationale": list(question.answer_rationale),
        "candidate_set": question.candidate_set,
        "target_id": question.answer,
        "entity": question.entity,
    }


def _input(text: str | None = None, pictures: Iterable[bytes] = ()) -> Row:
    return {"text": text, "image": [{"bytes": png, "path": None} for png in pictures], "instruction": None}
