"""Read recipes: how a published embedder makes a prompt and where it reads its vector, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from mmemb_r1.file_formats import check_type, read_yaml
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.modeling.tokens_mmemb_r1 import EMBED, END_THINK, THINK

KNOWN = Path(__file__).parent / "known"  # one file per recipe; its name is the recipe's
KINDS = ("image", "text", "video")
NEW_TOKENS = (EMBED, THINK, END_THINK)  # may be missing in a checkpoint: they are added
CHOICES = {
    "prompt.instruction": ("system", "text"),
    "loading": ("plain", "lora"),
    "positions": ("backbone", "sequence"),
    "read.position": ("marker", "before"),
    "read.state": ("normed", "unnormed"),
    "thought.read_at": ("marker", "end"),
    "spaces": (1, 2),
}


@dataclass(frozen=True)
class Signs:
    """
    Say what a checkpoint has that a recipe is for; all that is given has to hold.

    Attributes:
        model_type: of its config.json, or of the base model's that adapters name.
        tokens: that its tokenizer has.
        files: that it has.
        names: patterns (`*` and `?`), one of which the last part of its Hub id or folder matches, in any case.
    """

    model_type: str | None = None
    tokens: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Count the signs: where two recipes fit, the one with more is meant."""
        return (self.model_type is not None) + len(self.tokens) + len(self.files) + bool(self.names)


@dataclass(frozen=True)
class Prompt:
    r"""
    Say how an input becomes the text before the marker.

    Attributes:
        turn_start: before a turn, `{role}` for its role; `""`: no turns, one input is the whole prompt.
        turn_end: after a turn that is not the last.
        ending: after the last turn, up to the marker.
        system: system turn of inputs that bring no instruction (with `instruction: text`, of all). `None`: none.
        instruction: where an input's instruction goes: `system`, the system turn; `text`, before the text.
        instruction_ends: what an instruction gets at its end (and is stripped), unless that is punctuation (Unicode
            category P). `None`: it stays as it is.
        instruction_separator: between instruction and text, with `instruction: text`.
        order: of the kinds of parts, where texts come last in the input; other chats keep their order.
        separator: between the parts of a turn.
        first_text: before a text that is the first part of its turn.
        empty: what a turn without any content says.
        image, video: what stands for a picture and for a video.
    """

    ending: str
    turn_start: str = "<|im_start|>{role}\n"
    turn_end: str = "<|im_end|>\n"
    system: str | None = None
    instruction: str = "system"
    instruction_ends: str | None = None
    instruction_separator: str = " "
    order: tuple[str, ...] = ("image", "video", "text")
    separator: str = ""
    first_text: str = ""
    empty: str = ""
    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    video: str = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass(frozen=True)
class Read:
    """
    Say where the direct vector is read.

    Attributes:
        marker: token at the end of each prompt; one that the checkpoint has, or `<|embed|>`, which is added.
        position: `marker`, the state at it; `before`, the state of the token before it.
        state: `normed`, after the backbone's final norm; `unnormed`, before it.
    """

    marker: str = EMBED
    position: str = "marker"
    state: str = "normed"


@dataclass(frozen=True)
class Thought:
    """
    Say what is fed around a rationale.

    Attributes:
        opening: text after the marker, before the rationale.
        end: token that ends the rationale.
        closing: text after it, up to the second marker.
        read_at: where the reasoned vector is read: `marker`, at a second marker as the direct one is; `end`, at the
            token that ends the rationale.
    """

    opening: str = THINK
    end: str = END_THINK
    closing: str = ""
    read_at: str = "marker"


@dataclass(frozen=True)
class Pixels:
    """Limit the width x height of a picture; a smaller or larger one is resized, its aspect kept."""

    least: int
    most: int


@dataclass(frozen=True)
class Recipe:
    """
    Hold all that turns a published embedder into a model of this package with the same direct vectors.

    Attributes:
        name: how it is called.
        source: where its facts are from.
        recognise: what checkpoints it is for; one of the entries has to hold.
        prompt, read, thought: how prompts are made, where vectors are read, what is fed around rationales.
        loading: `plain`, complete weights; `lora`, adapters that are merged into the model they name.
        positions: `backbone`, rotary positions of pictures as the backbone makes them; `sequence`, their tokens are
            numbered one after another like text.
        spaces: 2 if direct and reasoned vectors do not compare, else 1.
        pixels: limits of pictures. `None`: those of the checkpoint's processor.
        config: fields of [`MMEmbR1Config`].
        notes: what is not certain, or differs from the published code.
    """

    name: str
    source: str
    prompt: Prompt
    recognise: tuple[Signs, ...] = ()
    read: Read = field(default_factory=Read)
    thought: Thought = field(default_factory=Thought)
    loading: str = "plain"
    positions: str = "backbone"
    spaces: int = 1
    pixels: Pixels | None = None
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def thinks(self) -> bool:
        """Tell whether the checkpoint itself was trained to write rationales."""
        return self.thought.read_at == "end"


def load_recipe(recipe: str | Path) -> Recipe:
    """
    Read a recipe: a known one by its name, or a YAML file.

    Raises:
        ValueError: if there is none, naming those that are known; naming the file and the key to correct.
    """
    known = known_recipes()
    path = known.get(str(recipe), Path(recipe))
    if not path.is_file():
        raise ValueError(
            f"There is no recipe {str(recipe)!r}, and no such file; known: {', '.join(known)}"
            f"{nearest_name(str(recipe), known)}"
        )
    content = read_yaml(path)
    try:
        made = _made(Recipe, {"name": path.stem, **content} if isinstance(content, dict) else content, "")
        _check(made)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return made


def known_recipes() -> dict[str, Path]:
    """List the recipes of this package, name -> file."""
    return {path.stem: path for path in sorted(KNOWN.glob("*.yaml"))}


def _made(kind: type, values: Any, where: str) -> Any:
    """Make a dataclass of what a file says, and check keys and types; `where` is the key that holds it."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or 'it'} is {values!r:.80}; allowed: keys and their values.")
    allowed = {one.name: one for one in fields(kind)}
    if unknown := [key for key in values if key not in allowed]:
        near = nearest_name(str(unknown[0]), allowed)
        raise ValueError(
            f"the key {_dotted(where, unknown[0])!r} is not known; allowed here: {', '.join(allowed)}{near}"
        )
    needed = [name for name, one in allowed.items() if one.default is one.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"the key {_dotted(where, missing[0])!r} is missing.")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, _dotted(where, key)) for key, value in values.items()})


def _dotted(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint == Pixels | None:
        hint = Pixels if value is not None else type(None)
    if is_dataclass(hint) and isinstance(hint, type):
        return _made(hint, value, where)
    if hint in (tuple[str, ...], tuple[Signs, ...]):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r:.80}; allowed: a list.")
        inner = hint.__args__[0]
        return tuple(_value(inner, item, f"{where}[{place}]") for place, item in enumerate(value))
    if hint == dict[str, Any]:
        check_type(where, value, "dict")
        return value
    check_type(where, value, hint.__name__ if isinstance(hint, type) else str(hint))
    if (choices := CHOICES.get(where)) and value not in choices:
        raise ValueError(f"{where} is {value!r}; allowed: {', '.join(map(str, choices))}.")
    return value


def _check(recipe: Recipe) -> None:
    """Refuse values that do not fit together."""
    if sorted(recipe.prompt.order) != sorted(KINDS):
        raise ValueError(f"prompt.order is {list(recipe.prompt.order)}; allowed: {', '.join(KINDS)}, each once.")
    if recipe.prompt.system and not recipe.prompt.system.strip():
        raise ValueError("prompt.system is blank; leave it out for no system turn.")
    for number, signs in enumerate(recipe.recognise):
        if not signs.number:
            raise ValueError(f"recognise[{number}] says nothing, so that it would fit every checkpoint.")
    if recipe.pixels is not None and not 0 < recipe.pixels.least <= recipe.pixels.most:
        raise ValueError(f"pixels are {recipe.pixels.least} to {recipe.pixels.most}; allowed: 0 < least <= most.")
    if recipe.prompt.turn_start and "{role}" not in recipe.prompt.turn_start:
        raise ValueError("prompt.turn_start has no {role}; put it where a turn's role goes.")
