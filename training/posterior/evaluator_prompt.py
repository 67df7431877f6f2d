"""How a pair and a rationale are put to a vision-language model that judges whether they match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, render, to_conversations, truncate_conversation
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.tokens_mmemb_r1 import as_plain_text, control_strings
from mmemb_r1.training.vlm import chat_template

PROMPTS = ("evaluator", "evaluator-short")
PROMPT_FILE = "evaluator-prompt.txt"  # beside a model that was trained with these words
_MARK = "[the rationale goes here]"
# A chat template, cut in two at the mark. All that comes before it is shared by the rationales of a pair, what comes
# after it by all pairs.
_CUT = "{% set whole %}TEMPLATE{%+ endset %}{{ whole.rsplit('MARK', 1)[PART] }}"


class EvaluatorPrompt:
    """
    The words around a pair.

    Args:
        text: lines that hold `{query}` and `{target}`, then one with `{rationale}` (and, optionally, `{side}`), then
            the question. The line of the rationale is left out where there is none.

    Raises:
        ValueError: if a place is missing, doubled, or comes too early or late.

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
        once = [self.head.count(place) == self.text.count(place) == 1 for place in ("{query}", "{target}")]
        if not all(once) or self.text.count("{rationale}") != 1:
            raise ValueError(
                "An evaluator's prompt holds {query} and {target} once each and, on a line of its own after both, "
                f"{{rationale}}. This one does not: {self.text!r:.300}"
            )

    @classmethod
    def load(cls, name: str) -> EvaluatorPrompt:
        """
        One of the prompts that come with the package, or the text file of that path.

        Raises:
            ValueError: if it is neither.
        """
        if name in PROMPTS:
            return cls(files("mmemb_r1.training").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8"))
        if not Path(name).is_file():
            raise ValueError(f"prompt={name!r}; allowed: {', '.join(map(repr, PROMPTS))} or the path of a text file.")
        return cls(Path(name).read_text(encoding="utf-8"))

    def parts(self, query: Sequence[dict[str, Any]], target: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The content of the user's turn up to the mark, from the parts of query and target."""
        content: list[dict[str, Any]] = []
        places = {"{query}": query, "{target}": target}
        text = f"{self.head}\n{_MARK}"
        for place in sorted(places, key=text.index):
            before, _, text = text.partition(place)
            content += [{"type": "text", "text": before}] if before else []
            content += places[place]
        return [*content, {"type": "text", "text": text}]

    def tail(self, rationale: str | None, side: str) -> str:
        """
        What comes after the pair: the line of the rationale, if there is one, and the question.

        Args:
            rationale: the rationale; `None` for none.
            side: of which side it is.
        """
        if rationale is None:
            return self.question
        line = self.line.replace("{side}", side).replace("{rationale}", rationale)
        return f"{line}\n{self.question}" if self.question else line


class PromptRenderer:
    """
    Pairs and rationales -> token ids, with the chat template of a processor.

    Args:
        processor: of a vision-language model or an mmemb-r1 checkpoint.
        prompt: the words around a pair.
        max_text_tokens: the text of an input is cut to so many tokens; the rationale is never cut.
        num_video_frames: frames that are sampled from a video file.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompt: EvaluatorPrompt,
        max_text_tokens: int | None = None,
        num_video_frames: int = 8,
    ) -> None:
        self.processor, self.prompt = processor, prompt
        self.max_text_tokens, self.num_video_frames = max_text_tokens, num_video_frames
        template = chat_template(processor).removesuffix("\n")  # jinja drops it there, but not at the end of a block
        self._before, after = (
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
        """The end of a prompt without a thought that was opened: the next token is to be the answer."""
        return f"{end}\n</think>\n\n" if end.rstrip().endswith("<think>") else end

    def heads(self, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> BatchFeature:
        """
        The prompts of (query, target) pairs up to where a rationale may come, padded on the left.

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
        return render(self.processor, conversations, chat_template=self._before)

    def _content(self, value: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
        try:
            (conversation,) = to_conversations([value], media=MediaOptions(self.num_video_frames))
        except InputError as error:
            raise ValueError(f"of its {side}, {error.reason}") from error
        if self.max_text_tokens is not None:
            conversation = truncate_conversation(self.processor.tokenizer, conversation, self.max_text_tokens)
        return [part for message in conversation for part in message["content"]]

    def suffix(self, rationale: str | None, side: str) -> list[int]:
        """Token ids from where a rationale may come to the end of the prompt."""
        text = None if rationale is None else as_plain_text(rationale, control_strings(self.processor))
        return self.processor.tokenizer(self.prompt.tail(text, side) + self._end, add_special_tokens=False)[
            "input_ids"
        ]
