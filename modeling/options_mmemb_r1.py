"""Check options and configuration fields: one table of type, range and meaning, which every way in asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, NamedTuple

_FIELDS_OF_REASONING = ("reasoning", "gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds")
REASONING_OPTIONS = (*_FIELDS_OF_REASONING, "second_look")
REASONING_MODES = ("auto", "always", "never")
GATE_INPUTS = ("state", "words")
SECOND_LOOK = ("bias", "mean_logp", "least_logp", "length", "cosine", "gate_logit")
TASKS = ("query", "document")
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
LARGEST = 2**62
WIDEST = 2**16  # more dimensions than any model has; a layer of more would fill the memory


class Rule(NamedTuple):
    """
    Say what a value may be.

    Attributes:
        kind: `int`, `float`, `bool` or `str`. Numbers of numpy are numbers; booleans are none.
        meaning: what it does, for error messages and help texts.
        low: smallest number.
        high: largest number.
        choices: the strings that are allowed. Default: all.
        is_list: whether it is a list of such values.
        keys: if any, it is a mapping of exactly these to such values.
    """

    kind: type
    meaning: str
    low: float = 1
    high: float = LARGEST
    choices: tuple[str, ...] = ()
    is_list: bool = False
    keys: tuple[str, ...] = ()


_SHARED = {  # options whose defaults are fields of the config
    "reasoning": Rule(str, "when to think", choices=REASONING_MODES),
    "gate_threshold": Rule(float, "auto thinks from this gate probability on", 0, 1),
    "max_reasoning_tokens": Rule(int, "budget of one rationale"),
    "max_reasoning_rounds": Rule(int, "how often one input may think"),
    "truncate_dim": Rule(int, "how many dimensions of a vector are kept"),
}
OPTIONS = {  # of `encode` and everything that passes options on to it
    **_SHARED,
    "second_look": Rule(bool, "whether a vector after a rationale is mixed with the direct one"),
    "task": Rule(str, "which side the inputs are", choices=TASKS),
    "allow_remote_media": Rule(bool, "download media that are given as web addresses"),
    "batch_size": Rule(int, "inputs read at once"),
    "max_batch_tokens": Rule(int, "tokens read at once, padding included"),
    "decode_batch_size": Rule(int, "inputs that think at once"),
    "chunk_size": Rule(int, "inputs that a process is handed at once"),
    "normalize_embeddings": Rule(bool, "whether vectors get unit norm"),
    "convert_to_numpy": Rule(bool, "whether vectors come as one array"),
    "convert_to_tensor": Rule(bool, "whether vectors come as one tensor"),
    "show_progress_bar": Rule(bool, "whether progress is shown"),
    "precision": Rule(str, "number format of the vectors", choices=PRECISIONS),
    "output_value": Rule(str, "what is returned, or None for all there is", choices=("sentence_embedding",)),
    "prompt": Rule(str, "the instruction"),
    "prompt_name": Rule(str, "name of the instruction"),
    "instruction": Rule(str, "the instruction"),
    "return_tensors": Rule(bool, "whether vectors come as tensors"),
    "shard_size": Rule(int, "inputs per file of a folder, lost at most"),
    "file_format": Rule(str, "format of the files", choices=("safetensors", "parquet")),
    "rationales": Rule(bool, "whether rationales are written"),
}
FIELDS = {  # of the config
    **_SHARED,
    "document_reasoning": _SHARED["reasoning"],
    "embed_token_id": Rule(int, "id of the marker, <|embed|>", 0),
    "embed_position": Rule(str, "up to where an embedding is read", choices=("marker", "before")),
    "embed_state": Rule(str, "states after or before the backbone's last norm", choices=("normed", "unnormed")),
    "think_token_id": Rule(int, "id of <think>", 0),
    "end_think_token_id": Rule(int, "id of </think>, or of what ends a rationale instead", 0),
    "opening_token_ids": Rule(int, "ids that open a rationale", 0, is_list=True),
    "closing_token_ids": Rule(int, "ids between the end of a rationale and its embedding", 0, is_list=True),
    "thinker_form": Rule(str, "where a thinker's rationale goes", choices=("tokens", "text")),
    "spaces": Rule(int, "whether direct and reasoned vectors compare (1) or not (2)", 1, 2),
    "suppressed_token_ids": Rule(int, "ids that no rationale holds", 0, is_list=True),
    "rationale_vocab_size": Rule(int, "ids from this one on have no token"),
    "pooling": Rule(str, "how states become one vector"),
    "embedding_dim": Rule(int, "dimensions after the projection", high=WIDEST),
    "matryoshka_dims": Rule(int, "dimensions that truncation was trained for", is_list=True),
    "normalize": Rule(bool, "whether vectors get unit norm"),
    "gate_inputs": Rule(str, "what the gate reads", choices=GATE_INPUTS, is_list=True),
    "gate_hidden_size": Rule(int, "width of the gate's hidden layer, 0 for none", 0, WIDEST),
    "gate_init_bias": Rule(float, "gate logit of a fresh model", -1e6, 1e6),
    "second_look": Rule(float, "weights of the second look", -1e6, 1e6, keys=SECOND_LOOK),
    "max_text_tokens": Rule(int, "longer text of one input is cut"),
    "max_image_tokens": Rule(int, "tokens of one picture"),
    "num_video_frames": Rule(int, "frames sampled from a video"),
    "max_image_pixels": Rule(int, "limit of a picture"),
    "max_video_frames": Rule(int, "limit of a video"),
    "max_video_pixels": Rule(int, "limit of what is kept of a video"),
    "repository_format": Rule(int, "how a repository is read"),
}


def check_option(name: str, value: Any, rules: Mapping[str, Rule] = OPTIONS) -> Any:
    """
    Check one value by the table, and make it a plain Python one.

    Raises:
        ValueError: that names the option, what came and what is allowed.

    >>> check_option("batch_size", 8)
    8
    >>> check_option("gate_threshold", True)
    Traceback (most recent call last):
    ValueError: gate_threshold=True (auto thinks from this gate probability on) has to be a number from 0 to 1.
    """
    rule = rules[name]
    if rule.keys:
        if not isinstance(value, Mapping) or {*value} != {*rule.keys}:
            raise ValueError(f"{name}={value!r:.80} ({rule.meaning}) has to be a mapping of {', '.join(rule.keys)}.")
        own = {f"{name}.{key}": rule._replace(keys=()) for key in rule.keys}
        return {key: check_option(f"{name}.{key}", value[key], own) for key in rule.keys}
    if not rule.is_list:
        values: Sequence[Any] = [value]
    elif isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r:.80} ({rule.meaning}) has to be a list of {_allowed(rule)}.")
    else:
        values = list(value)
    if rule.choices and not all(isinstance(item, str) and item in rule.choices for item in values):
        raise ValueError(f"{name}={value!r:.80} is not known; allowed: {', '.join(rule.choices)} ({rule.meaning}).")
    if not all(_fits(item, rule) for item in values):
        allowed = f"a list of {_allowed(rule)}" if rule.is_list else _allowed(rule)
        raise ValueError(f"{name}={value!r:.80} ({rule.meaning}) has to be {allowed}.")
    plain = [rule.kind(item) for item in values]
    return plain if rule.is_list else plain[0]


def _fits(value: Any, rule: Rule) -> bool:
    if rule.kind is str:
        return isinstance(value, str)
    if rule.kind is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's, without importing it
    if isinstance(value, bool) or not isinstance(value, Integral if rule.kind is int else Real):
        return False
    number: Any = value
    return bool(rule.low <= number <= rule.high)  # neither NaN nor infinite


def describe_option(name: str, rules: Mapping[str, Rule] = OPTIONS) -> str:
    """
    Say in a help text what an option does, and what is allowed.

    >>> describe_option("gate_threshold"), describe_option("reasoning")
    ('auto thinks from this gate probability on, a number from 0 to 1', 'when to think')
    """
    rule = rules[name]
    return rule.meaning if rule.choices or rule.kind in (str, bool) else f"{rule.meaning}, {_allowed(rule)}"


def _allowed(rule: Rule) -> str:
    if rule.kind in (str, bool):
        return "a string" if rule.kind is str else "True or False"
    kind = "a number" if rule.kind is float else "whole numbers" if rule.is_list else "one whole number"
    return f"{kind} of at least {rule.low}" if rule.high == LARGEST else f"{kind} from {rule.low} to {rule.high}"


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check those of the given options that the table knows; others are passed on as they are.

    `None` counts as not given, and is left out; only for `output_value` it has a meaning of its own.

    Raises:
        ValueError: as `check_option`.
    """
    given = {name: value for name, value in options.items() if value is not None or name == "output_value"}
    return {
        name: check_option(name, value) if name in OPTIONS and value is not None else value
        for name, value in given.items()
    }


def list_budgets(budgets: Any) -> list[int]:
    """
    List the budgets of rationales: one for all rows, or one per row.

    Raises:
        ValueError: if one is no whole number of at least 1.
    """
    is_many = isinstance(budgets, Sequence) and not isinstance(budgets, str)
    return [check_option("max_reasoning_tokens", budget) for budget in (budgets if is_many else [budgets])]


def resolve_reasoning(config: Any, options: Mapping[str, Any], task: str | None = None) -> dict[str, Any]:
    """
    Fill in the options of thinking that are not given, and check them: the one place where this is done.

    Args:
        config: the [`MMEmbR1Config`], whose values are the defaults.
        options: those that are given; `None` counts as not given, and other names are passed over.
        task: `"query"` makes the config's `reasoning` the default, `"document"` its `document_reasoning`. So does
            `None`, because many programs embed documents by a plain `encode`; but who gives a `gate_threshold` asks
            the gate.

    Returns:
        All of `REASONING_OPTIONS`; `max_reasoning_tokens` is one number, or a list of one per row, and `second_look`
        stands there only if the config has weights for it.

    Raises:
        ValueError: if an option is out of its range, or a second look is asked for that was not fitted.

    >>> from .configuration_mmemb_r1 import MMEmbR1Config
    >>> resolve_reasoning(MMEmbR1Config(), {"gate_threshold": 0.9, "batch_size": 8}, task="document")
    {'reasoning': 'never', 'gate_threshold': 0.9, 'max_reasoning_tokens': 128, 'max_reasoning_rounds': 1}
    """
    if task is not None:
        check_option("task", task)
    resolved = {name: getattr(config, name) for name in _FIELDS_OF_REASONING}
    if task == "document" or (task is None and options.get("gate_threshold") is None):
        resolved["reasoning"] = config.document_reasoning
    limit = context_length(config)
    for name in _FIELDS_OF_REASONING:
        value = options.get(name)
        if value is None:
            continue
        is_list = name == "max_reasoning_tokens" and isinstance(value, Sequence) and not isinstance(value, str)
        resolved[name] = list_budgets(value) if is_list else check_option(name, value)
        if name.startswith("max_") and max(resolved[name] if is_list else [resolved[name]], default=0) > limit:
            raise ValueError(f"{name}={value!r:.80} is more than the model's context of {limit} tokens; give less.")
    if config.spaces == 2 and resolved["max_reasoning_rounds"] != 1:
        raise ValueError(
            f"max_reasoning_rounds={resolved['max_reasoning_rounds']}: this model's reasoned vectors are of a space "
            "of their own, where no further rationale begins; allowed: 1."
        )
    look = options.get("second_look")
    if look is not None and check_option("second_look", look) and config.second_look is None:
        raise ValueError(
            "second_look=True: this model has no second look. Fit one with `mmemb-r1 train gate --second-look`, or "
            "leave the option out."
        )
    if config.second_look is not None:
        resolved["second_look"] = True if look is None else check_option("second_look", look)
    return resolved


def require_one_space(config: Any, reasoning: str) -> None:
    """
    Refuse to put direct and reasoned embeddings side by side where they are of two spaces (`spaces` of the config).

    Raises:
        ValueError: saying what to do.
    """
    if config.spaces == 2 and reasoning == "auto":
        raise ValueError(
            'reasoning="auto" would mix vectors of two spaces: the direct and the reasoned ones of this model do not '
            'compare. Pass "never" or "always" for queries and documents alike; or let MMEmbR1.explain, or '
            "encode(output_value=None), say of each input whether it was reasoned about, and compare it with "
            "documents of its own kind."
        )


def check_same_space(spaces: int, queries: str, documents: str, *, hint: str = "") -> None:
    """
    Refuse reasoning modes of queries and documents whose embeddings can't be compared.

    Args:
        spaces: of the model's config.
        queries, documents: `"never"`, `"always"` or `"auto"`.
        hint: what else there is to do, a clause that begins with "or".

    Raises:
        ValueError: if there are two spaces, and both sides are not surely of the same one.

    >>> check_same_space(1, "always", "never"), check_same_space(2, "always", "always")
    (None, None)
    """
    if spaces == 2 and (queries != documents or queries == "auto"):
        raise ValueError(
            f"queries embedded with reasoning={queries!r} can't be compared with documents embedded with "
            f"reasoning={documents!r}: the direct and the reasoned embeddings of this model are two spaces (spaces: 2 "
            f"in its config), and a cosine between one of each says nothing. Embed both with 'never', or both with "
            f"'always'{hint}."
        )


def context_length(config: Any) -> int:
    """Read from an [`MMEmbR1Config`] how many tokens its backbone was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or LARGEST


def nearest_name(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """
    Suggest the name that may have been meant: the end of an error message.

    >>> nearest_name("max_text_token", ["pooling", "max_text_tokens"])
    "; did you mean 'max_text_tokens'?"
    """
    found = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {found[0]!r}?" if found else ""
