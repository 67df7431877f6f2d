"""Embed inputs after rationales that another model writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from mmemb_r1.content import content_key
from mmemb_r1.encoding import (
    MAX_BATCH_TOKENS,
    batched,
    embedded_rows,
    input_sizes,
    media_options,
    plan_batches,
    unbatched,
)
from mmemb_r1.engines.rows import embeddings_after
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, parse_input
from mmemb_r1.modeling.locking_mmemb_r1 import tokenizing
from mmemb_r1.modeling.options_mmemb_r1 import FIELDS, REASONING_OPTIONS, check_option, context_length
from mmemb_r1.modeling.paths_mmemb_r1 import num_control_tokens, suffix_of_ids
from mmemb_r1.modeling.rendering_mmemb_r1 import plain_conversations, truncate_conversation, truncate_text
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.modeling.tokens_mmemb_r1 import as_plain_text, control_strings
from mmemb_r1.rationale_tokens import append_tokens, rationale_ids
from mmemb_r1.thinker import NoThought, Thinker, ThinkerError, Thought, load_thinker, thinker_input

SEPARATOR = "\n"  # between an input's text and its rationale
Row = dict[str, Tensor]


@dataclass(frozen=True)
class Written:
    """
    Hold a rationale as the embedder takes it.

    Attributes:
        text: with control strings broken, within the budget.
        ids: its tokens, without those around it.
        is_cut: whether a budget ended it.
    """

    text: str
    ids: list[int]
    is_cut: bool


@dataclass(frozen=True)
class Thinking:
    """
    Let a thinker write the rationales of a model's inputs.

    Attributes:
        thinker: who writes them.
        form: where they go: `"tokens"`, between the tokens of thought that follow the prompt; `"text"`, after the
            input's text, in a prompt of its own.
    """

    thinker: Thinker
    form: str

    @classmethod
    def of(cls, thinker: Any, form: str | None, config: MMEmbR1Config) -> Thinking | None:
        """Find a thinker, see [`load_thinker`]; without a form, it is that of the config's `thinker_form`."""
        if form is not None:
            form = check_option("thinker_form", form, FIELDS)
        if thinker is not None:
            return cls(load_thinker(thinker), form or config.thinker_form)
        if form is not None:
            raise ValueError(f"thinker_form={form!r} is for the rationales of a thinker: give one, or leave it out.")
        return None

    @property
    def identity(self) -> dict[str, Any]:
        """Tell all that vectors depend on besides the checkpoint, the input and the options."""
        return {"definition": self.thinker.definition, "form": self.form}

    def options(self, config: MMEmbR1Config, given: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
        """
        Say how inputs think here.

        Args:
            config: of the model.
            given: options of `encode`.
            resolved: what `row_options` made of them; not of `"never"`.

        Returns:
            `resolved`, with one round, and the thinker's `identity` as `thinker`.

        Raises:
            ValueError: if several rounds are asked for, a rationale would leave no room for text, or a second look is
                wanted.
        """
        if (given.get("max_reasoning_rounds") or 1) > 1:
            raise ValueError(
                f"max_reasoning_rounds={given['max_reasoning_rounds']}: a thinker writes one rationale of an input; "
                "allowed with a thinker: 1."
            )
        if resolved.get("second_look"):
            raise ValueError(
                "The second look of this model reads how likely it found its own rationale, and a thinker writes "
                "others; pass second_look=False (in a command: --no-second-look), or leave the thinker out."
            )
        budget, limit = resolved["max_reasoning_tokens"], config.max_text_tokens
        if self.form == "text" and limit is not None and budget >= limit:
            raise ValueError(
                f"max_reasoning_tokens={budget} leaves no room for an input: its rationale is put after its text, and "
                f"both together have max_text_tokens={limit} of the config at most. Give fewer, or raise the limit."
            )
        return {**resolved, "max_reasoning_rounds": 1, "thinker": self.identity}

    def rows(
        self,
        model: SentenceTransformer,
        inputs: Sequence[Any],
        wanted: Sequence[int],
        device: torch.device,
        prompt: str | None,
        batch_size: int,
        options: dict[str, Any],
    ) -> Iterator[tuple[list[int], Row]]:
        """
        Embed the inputs at the places `wanted`: directly, and those that think after a thinker's rationale.

        The thinker is asked while the next inputs are read. Where it fails, what it has written so far is embedded
        and yielded before the error.

        Args:
            model, inputs, device, prompt, batch_size: as for `adaptive_rows`.
            options: of `encode`, with all that `options` returned.

        Raises:
            ThinkerError: a `ValueError` that names the place of an input without a rationale.
            ValueError: of the thinker, if it can't work at all.
        """
        call = _Call(self, model, inputs, device, prompt, batch_size, options)
        reading = call.read(wanted)
        # chained: a thinker that closes what it reads does not end the reading
        answers = iter(self.thinker.think(chain(reading), options["max_reasoning_tokens"]))
        failed: ValueError | None = None
        is_over = False
        try:
            while not is_over:
                try:
                    answer = next(answers, None)
                    if answer is not None:
                        call.take(*answer)
                except ValueError as error:
                    failed, answer = error, None
                is_over = answer is None
                yield from call.direct()
                if len(call.written) >= (1 if is_over else batch_size):
                    yield from call.reasoned()
        finally:
            if callable(close := getattr(answers, "close", None)):
                close()  # what is asked still is given up
        if failed is not None:
            raise failed
        for _ in reading:  # what the thinker did not ask for
            pass
        yield from call.direct()
        call.check_answered()


class _Call:
    """Keep track of the inputs of one call: which were read, which wait for a rationale, which have one."""

    def __init__(
        self,
        thinking: Thinking,
        model: SentenceTransformer,
        inputs: Sequence[Any],
        device: torch.device,
        prompt: str | None,
        batch_size: int,
        options: dict[str, Any],
    ) -> None:
        self.thinking, self.model, self.inputs = thinking, model, inputs
        self.device, self.prompt, self.batch_size = device, prompt, batch_size
        self.options = {name: value for name, value in options.items() if name != "thinker"}
        self.media, self.config = media_options(model, options), model[0].model.config
        self.processor = model[0].processor
        self.places: list[int] = []  # of what the thinker was asked, one after another
        self.waiting: dict[int, Row] = {}  # place -> what was read directly
        self.written: dict[int, Written] = {}  # place -> its rationale
        self._direct: list[tuple[list[int], Row]] = []

    def read(self, wanted: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Embed inputs directly, batch by batch as there is room, and yield what the thinker is asked."""
        given = (self.options.get(name) for name in REASONING_OPTIONS)
        decisions = ReasoningOptions.of(self.config, None, *given)
        for places, features in self._embedded(self.inputs, wanted, self.prompt):
            thinks = decisions.thinks(features["gate_prob"])
            rows = unbatched(features)
            if done := sorted(set(range(len(places))) - set(thinks)):
                self._direct.append(([places[row] for row in done], batched([rows[row] for row in done])))
            self.waiting |= {places[row]: rows[row] for row in thinks}
            for row in thinks:
                self.places.append(places[row])
                yield self._question(places[row])

    def take(self, number: int, answer: Thought | NoThought) -> None:
        """Keep an answer of the thinker, within the budget."""
        name = type(self.thinking.thinker).__name__
        if number not in range(len(self.places)):
            raise ValueError(
                f"{name} answered input {number!r:.80}; it was asked about {len(self.places)}, from 0 on."
            )
        place = self.places[number]
        if place in self.written or place not in self.waiting:
            raise ValueError(f"{name} answered input {number} twice; each input has one rationale.")
        if isinstance(answer, NoThought):
            raise self.error(place, answer.reason)
        if not isinstance(answer, Thought):
            raise ValueError(f"{name} answered {answer!r:.80}; allowed: a Thought or a NoThought of mmemb_r1.thinker.")
        if not answer.text.strip():
            raise self.error(place, "its rationale is empty.")
        self.written[place] = self._within(answer, self.options["max_reasoning_tokens"])

    def direct(self) -> Iterator[tuple[list[int], Row]]:
        """Yield what was read since the last call and does not think."""
        while self._direct:
            yield self._direct.pop(0)

    def reasoned(self) -> Iterator[tuple[list[int], Row]]:
        """Embed all inputs whose rationale is there, and yield them."""
        embed = self._after_tokens if self.thinking.form == "tokens" else self._after_text
        for places, vectors in embed(list(self.written)):
            rows = []
            for place, vector in zip(places, vectors, strict=True):
                written, row = self.written.pop(place), self.waiting.pop(place)
                told = {
                    "reasoned": True,
                    "num_reasoning_rounds": 1,
                    "num_reasoning_tokens": len(written.ids),
                    "num_forced_closings": int(written.is_cut),
                    "rationale_ids": written.ids,
                }
                made = {"sentence_embedding": vector, **{key: torch.tensor(value) for key, value in told.items()}}
                rows.append({**row, **{key: value.to(row[key]) for key, value in made.items()}})
            yield places, batched(rows)

    def check_answered(self) -> None:
        """Refuse inputs that the thinker passed over."""
        for place in self.waiting:
            raise self.error(place, "it ended without a rationale for this input.")

    def error(self, place: int, reason: str) -> ThinkerError:
        """Make the error of an input that the thinker has no rationale for."""
        error = ThinkerError(
            place,
            f"the thinker has no rationale for it: {reason} Correct the input or the thinker and go on; or leave the "
            'input out, or embed it directly (reasoning="never").',
            self.inputs[place],
        )
        error.key = content_key(self.inputs[place], self.media)
        return error

    def _embedded(self, inputs: Sequence[Any], wanted: Sequence[int], prompt: str | None) -> Any:
        options = {**self.options, "reasoning": "never"}
        return embedded_rows(self.model, inputs, wanted, self.device, prompt, self.batch_size, options)

    def _question(self, place: int) -> dict[str, Any]:
        try:
            return thinker_input(self.inputs[place], self.media, self.prompt)
        except (ValueError, OSError) as error:  # what was on the web a moment ago
            raise InputError(place, str(error), self.inputs[place]) from error

    def _within(self, thought: Thought, budget: int) -> Written:
        """Cut a rationale to a budget of our tokens."""
        text = as_plain_text(thought.text.strip(), control_strings(self.processor))
        with tokenizing():
            kept = truncate_text(self.processor.tokenizer, text, budget)
        ids = rationale_ids(self.processor, kept)[:budget]
        return Written(kept, ids, thought.is_cut or kept != text)

    def _after_tokens(self, places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Embed inputs in one pass each over `prompt <|embed|> <think> r </think> <|embed|>`: places, `(n, D)`."""
        values = [self.inputs[place] for place in places]
        if (engine := getattr(self.model, "engine", None)) is not None:
            follow = [partial(self._suffix, place) for place in places]
            yield list(places), embeddings_after(engine, self.model[0], values, follow, self.prompt, self.media)
            return
        sizes = [
            size._replace(tokens=size.tokens + len(self.written[place].ids))
            for size, place in zip(input_sizes(values, self.processor, self.config, self.media), places, strict=True)
        ]
        for rows in plan_batches(sizes, self.batch_size, self.options.get("max_batch_tokens", MAX_BATCH_TOKENS)):
            chosen = [places[row] for row in rows]
            features = model_inputs(
                self.model.preprocess(
                    [values[row] for row in rows], prompt=self.prompt, allow_remote_media=self.media.allow_remote
                )
            )
            lengths = features["attention_mask"].sum(dim=1).tolist()
            suffixes = [self._suffix(place, length) for place, length in zip(chosen, lengths, strict=True)]
            batch = append_tokens(features, suffixes, self.processor.tokenizer.pad_token_id)
            output = self.model[0].model(**{name: value.to(self.device) for name, value in batch.items()})
            yield chosen, output.embeddings[:, -1]  # (n, 2, D) -> (n, D)

    def _suffix(self, place: int, length: int) -> list[int]:
        """Make what follows a prompt of so many tokens; a rationale that the model can't read to its end is cut."""
        room = max(context_length(self.config) - length - num_control_tokens(self.config), 0)
        written = self.written[place]
        if len(written.ids) > room:
            written = self.written[place] = replace(written, ids=written.ids[:room], is_cut=True)
        return suffix_of_ids(self.config, written.ids)

    def _after_text(self, places: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Embed inputs directly, each with its rationale after its text: places, `(n, D)`."""
        chats = [self._with_rationale(self.inputs[place], self.written[place].text) for place in places]
        try:
            for rows, features in self._embedded(chats, range(len(chats)), None):
                yield [places[row] for row in rows], features["sentence_embedding"]
        except InputError as error:
            row = next((row for row, chat in enumerate(chats) if chat is error.value), error.index)
            raise InputError(places[row], error.fault, self.inputs[places[row]]) from error

    def _with_rationale(self, value: Any, rationale: str) -> list[dict[str, Any]]:
        """Put a rationale after the text of an input, whose end makes room for it where both are too long."""
        [chat] = plain_conversations(self.processor, [parse_input(value, self.media, self.prompt)])
        limit, tokenizer = self.config.max_text_tokens, self.processor.tokenizer
        whole = _appended(chat, rationale)
        if limit is None or len("".join(_texts(whole)).encode()) <= limit:  # a token is at least one byte
            return whole
        with tokenizing():
            room = limit - _count(tokenizer, _appended([{"role": "user", "content": []}], SEPARATOR + rationale))
            while True:
                whole = _appended(truncate_conversation(tokenizer, chat, max(room, 0)), rationale)
                # tokens of two texts together are not always those of each
                if room <= 0 or (excess := _count(tokenizer, whole) - limit) <= 0:
                    return whole
                room -= excess


def _texts(chat: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the texts that count: those of all turns but the system's."""
    turns = [turn for turn in chat if turn["role"] != "system"]
    return [part["text"] for turn in turns for part in turn["content"] if part["type"] == "text"]


def _count(tokenizer: Any, chat: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _texts(chat) if text)


def _appended(chat: Sequence[dict[str, Any]], rationale: str) -> list[dict[str, Any]]:
    """Add a rationale to the last turn, on a line of its own."""
    content = list(chat[-1]["content"])
    before = content.pop()["text"] if content and content[-1]["type"] == "text" else ""
    text = f"{before}{SEPARATOR}{rationale}" if before.strip() else rationale
    return [*chat[:-1], {**chat[-1], "content": [*content, {"type": "text", "text": text}]}]
