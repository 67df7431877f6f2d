"""Evaluate pairs with a vision-language model: does this target match this query, yes or no?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from mmemb_r1.modeling.backbones_mmemb_r1 import checked_limit
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.options_mmemb_r1 import context_length
from mmemb_r1.modeling.rendering_mmemb_r1 import render, truncate_conversation
from mmemb_r1.modeling.tokens_mmemb_r1 import as_plain_text, control_strings
from mmemb_r1.training.selection.evaluator import Trial, TrialError
from mmemb_r1.training.settling.reading import Reading
from mmemb_r1.training.shared_prefix import read_prefix, suffix_logits
from mmemb_r1.training.vlm import chat_template, load_vlm, weights_fingerprint

PROMPTS = ("evaluator", "evaluator-short")
PROMPT_FILE = "evaluator-prompt.txt"  # in the folder of a trained evaluator: the prompt of its training
_MARK = "[the rationale goes here]"
# A chat template, cut in two at the mark: the first part is read once per pair, the second is the same for all pairs.
_CUT = "{% set whole %}TEMPLATE{%+ endset %}{{ whole.rsplit('MARK', 1)[PART] }}"


class EvaluatorPrompt:
    """
    The text of an evaluator's prompt around a pair and a rationale.

    Args:
        text: lines that hold `{query}` and `{target}`, then one with `{rationale}` (and, optionally, `{side}`), then
            the question. The line of the rationale is left out where there is none.

    Raises:
        ValueError: if a placeholder is missing, repeated, or in the wrong order.

    >>> prompt = EvaluatorPrompt("{query} = {target}?\\nAbout the {side}: {rationale}\\nyes or no?")
    >>> prompt.tail("It is red.", "query")
    'About the query: It is red.\\nyes or no?'
    >>> prompt.tail(None, "query")
    'yes or no?'
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip("\n")
        before, found, after = self.text.partition("{rationale}")
        self.head, _, start = before.rpartition("\n")
        end, _, self.question = after.partition("\n")
        self.line = f"{start}{found}{end}"
        once = [self.head.count(name) == self.text.count(name) == 1 for name in ("{query}", "{target}")]
        if not all(once) or self.text.count("{rationale}") != 1:
            raise ValueError(
                "An evaluator's prompt holds {query} and {target} once each and, on a line of its own after both, "
                f"{{rationale}}. This one does not: {self.text!r:.300}"
            )

    @classmethod
    def load(cls, name: str) -> EvaluatorPrompt:
        """Load a prompt that comes with the package, or one from a text file."""
        if name in PROMPTS:
            return cls(files("mmemb_r1.training").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8"))
        if not Path(name).is_file():
            raise ValueError(f"prompt={name!r}; allowed: {', '.join(map(repr, PROMPTS))} or the path of a text file.")
        return cls(Path(name).read_text(encoding="utf-8"))

    def parts(self, query: Sequence[dict[str, Any]], target: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Make the content of the user's turn up to the mark, from the parts of query and target."""
        content: list[dict[str, Any]] = []
        inputs = {"{query}": query, "{target}": target}
        text = f"{self.head}\n{_MARK}"
        for name in sorted(inputs, key=text.index):
            before, _, text = text.partition(name)
            content += [{"type": "text", "text": before}] if before else []
            content += inputs[name]
        return [*content, {"type": "text", "text": text}]

    def tail(self, rationale: str | None, side: str) -> str:
        """Write what comes after the pair: the line of the rationale about a side, if any, and the question."""
        if rationale is None:
            return self.question
        line = self.line.replace("{side}", side).replace("{rationale}", rationale)
        return f"{line}\n{self.question}" if self.question else line


class PromptRenderer:
    """
    Renders pairs and rationales as token ids, with the chat template of a processor.

    Args:
        processor: of a vision-language model or an mmemb-r1 checkpoint.
        prompt: the text around them.
        max_text_tokens: the text of an input is truncated to so many tokens; the rationale never is.
        max_image_tokens: larger pictures are made smaller, to so many tokens each. Default: never.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompt: EvaluatorPrompt,
        max_text_tokens: int | None = None,
        max_image_tokens: int | None = None,
    ) -> None:
        self.processor, self.prompt = processor, prompt
        self.max_text_tokens, self.max_image_tokens = max_text_tokens, checked_limit(processor, max_image_tokens)
        template = chat_template(processor).removesuffix("\n")  # which jinja drops, but not at the end of a block
        self.head_template, after = (
            _CUT.replace("PART", part).replace("MARK", _MARK).replace("TEMPLATE", template) for part in "01"
        )
        self._end = self._closed(
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "text", "text": _MARK}]}],
                chat_template=after,
                add_generation_prompt=True,
                tokenize=False,
            )
        )

    @staticmethod
    def _closed(end: str) -> str:
        """Close a block of reasoning that the template opens: the next token is to be the answer."""
        return f"{end}\n</think>\n\n" if end.rstrip().endswith("<think>") else end

    def heads(self, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> BatchFeature:
        """
        Render (query, target) pairs up to where a rationale may come, padded on the left.

        Raises:
            InputError: as `conversations`.
        """
        return render(
            self.processor,
            self.conversations(pairs),
            chat_template=self.head_template,
            max_image_tokens=self.max_image_tokens,
        )

    def conversations(
        self, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> list[list[dict[str, Any]]]:
        """
        Make the conversations about (query, target) pairs, to be rendered with `head_template`.

        Raises:
            InputError: with the index of the pair that can't be read; its reason says which side it is.
        """
        conversations = []
        for index, sides in enumerate(pairs):
            try:
                query, target = map(self._content, sides, ("query", "target"))
            except ValueError as error:
                raise InputError(index, str(error)) from error
            conversations.append([{"role": "user", "content": self.prompt.parts(query, target)}])
        return conversations

    def _content(self, value: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
        try:
            (conversation,) = to_conversations([value])
        except InputError as error:
            raise ValueError(f"of its {side}, {error.reason}") from error
        if self.max_text_tokens is not None:
            conversation = truncate_conversation(self.processor.tokenizer, conversation, self.max_text_tokens)
        return [part for message in conversation for part in message["content"]]

    def suffix(self, rationale: str | None, side: str) -> list[int]:
        """Tokenise the rest of the prompt, from where a rationale may come to its end."""
        text = None if rationale is None else as_plain_text(rationale, control_strings(self.processor))
        return self.processor.tokenizer(self.prompt.tail(text, side) + self._end, add_special_tokens=False)[
            "input_ids"
        ]


def answer_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """
    Find the first tokens of "yes" and of "no", in any usual spelling, after a space or not.

    Raises:
        ValueError: if they are the same tokens.
    """
    yes, no = (
        sorted(
            {
                tokenizer(space + spelling, add_special_tokens=False)["input_ids"][0]
                for spelling in (word, word.capitalize(), word.upper())
                for space in ("", " ")
            }
        )
        for word in ("yes", "no")
    )
    # a tokenizer may write the space as a token of its own, which both begin with
    both = set(yes) & set(no)
    yes, no = ([id_ for id_ in ids if id_ not in both] for ids in (yes, no))
    if not yes or not no:
        raise ValueError(
            f"{type(tokenizer).__name__} begins 'yes' and 'no' with the same tokens; use another model as evaluator."
        )
    return yes, no


def match_logit(logits: Tensor, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:
    """
    Return the log-odds that the answer is yes: `log p(yes) - log p(no)`, each summed over its spellings. That
    confidence comes from a match logit is the paper's; summing over spellings is ours.

    Args:
        logits: `(..., V)` of the next token.
        yes_ids, no_ids: first tokens of "yes" and "no", see `answer_ids`.

    >>> import torch
    >>> match_logit(torch.tensor([1.0, 0.5, 0.0]), [0], [1]).item()
    0.5
    """
    logits = logits.float()
    return logits[..., list(yes_ids)].logsumexp(dim=-1) - logits[..., list(no_ids)].logsumexp(dim=-1)


@dataclass
class VLMEvaluator:
    """
    Scores pairs by the log-odds of "yes" against "no". Each (query, target) is read once for all its rationales.

    Args:
        model: a vision-language model: a folder or a Hub id.
        prompt: `"evaluator"`, `"evaluator-short"` or a text file. Default: the prompt of the model's training (a file
            in its folder), else `"evaluator"`.
        batch_size: (query, target) pairs that are read at once.
        max_branches: prompts that are completed at once, each with its own copy of the key-value cache.
        max_text_tokens: the text of an input is truncated to so many tokens. Default: never.
        max_image_tokens: larger pictures are made smaller, to so many tokens each. Default: never.
        device: where the model runs. Default: the accelerator if there is one.
        dtype: of the weights: `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        ValueError: if the prompt lacks a placeholder, or the tokenizer can't tell yes from no.
    """

    model: str
    prompt: str | None = None
    batch_size: int = 16
    max_branches: int = 128
    max_text_tokens: int | None = None
    max_image_tokens: int | None = None
    device: str | None = None
    dtype: str = "auto"
    _vlm: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._vlm, processor = load_vlm(self.model, device=self.device, dtype=self.dtype)
        self._prompt = EvaluatorPrompt.load(self.prompt or saved_prompt(self.model))
        self._renderer = PromptRenderer(processor, self._prompt, self.max_text_tokens, self.max_image_tokens)
        self._answers = answer_ids(processor.tokenizer)
        self._weights = weights_fingerprint(self._vlm)
        self.context_length = context_length(self._vlm.config)
        self.reading = Reading(
            processor,
            max_text_tokens=self.max_text_tokens,
            chat_template=chat_template(processor),
            max_image_tokens=self.max_image_tokens,
        )

    @property
    def definition(self) -> dict[str, Any]:
        """All that determines the answers."""
        return {
            "kind": "vlm",
            "model": Path(self.model).name,  # for readers; the weights identify the model, wherever its folder is
            "weights": self._weights,
            "prompt": self._prompt.text,
            "max_text_tokens": self.max_text_tokens,
            "max_image_tokens": self.max_image_tokens,
            "dtype": self.dtype,
        }

    @torch.inference_mode()
    def match_logits(self, trials: Sequence[Trial]) -> list[Tensor]:
        """See [`PairEvaluator.match_logits`]."""
        results = [torch.empty(len(trial.others), len(trial.rationales)) for trial in trials]
        suffixes_of = [
            [self._renderer.suffix(rationale, trial.side) for rationale in trial.rationales] for trial in trials
        ]
        pairs = [(number, other) for number, trial in enumerate(trials) for other in range(len(trial.others))]
        for start in range(0, len(pairs), self.batch_size):
            part = pairs[start : start + self.batch_size]
            prefix = read_prefix(self._vlm, self._heads(trials, part))
            suffixes = [suffixes_of[number] for number, _ in part]
            rows = [row for row, some in enumerate(suffixes) for _ in some]
            logits = suffix_logits(self._vlm, prefix, rows, sum(suffixes, []), self.max_branches)  # (N, V)
            scores = match_logit(logits, *self._answers).cpu().split([len(some) for some in suffixes])
            for (number, other), row in zip(part, scores, strict=True):
                results[number][other] = row
        return results

    def _heads(self, trials: Sequence[Trial], rows: Sequence[tuple[int, int]]) -> Any:
        try:
            return self._renderer.heads([pair_of(trials[number], other) for number, other in rows])
        except InputError as error:
            raise TrialError(rows[error.index][0], error.reason) from error


def pair_of(trial: Trial, other: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Put the anchor of a trial and one of the others in their order: query, target."""
    pair = (trial.anchor, trial.others[other])
    return pair if trial.side == "query" else pair[::-1]


def saved_prompt(model: str) -> str:
    """Find the prompt of a model's training, in its folder or on the Hub; `"evaluator"` if there is none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        saved = folder / PROMPT_FILE
        return str(saved) if saved.is_file() else "evaluator"
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(model, PROMPT_FILE, **optional) or "evaluator"
