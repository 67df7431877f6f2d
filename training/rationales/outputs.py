"""Check the keys that models on this machine share, and read the rationale in what one wrote after a prompt."""

from __future__ import annotations

from typing import Any

from mmemb_r1.modeling.tokens_mmemb_r1 import THINK
from mmemb_r1.training.rationales.prompting import Style, parse_rationale, split_reasoning, why_empty
from mmemb_r1.training.rationales.sampling import Continuation
from mmemb_r1.training.rationales.worker import Failure, Rationale, is_number, require
from mmemb_r1.training.vlm import DTYPES

LONGEST_OPENING = 8  # tokens at the end of a prompt in which an opening tag is looked for


def require_keys(worker: Any) -> None:
    """Refuse values that a worker can't use of the keys which all workers have that run a model on this machine."""
    require(worker, "model", isinstance(worker.model, str) and bool(worker.model), "a folder or an ID on the Hub")
    limit = worker.max_image_tokens
    require(worker, "max_image_tokens", limit is None or is_number(limit, int, 1), "a whole number from 1 on, or null")
    for key in ("num_samples", "max_tokens", "batch_size"):
        require(worker, key, is_number(getattr(worker, key), int, 1), "a whole number from 1 on")
    require(worker, "top_p", is_number(worker.top_p, int | float, 0, 1) and worker.top_p > 0, "more than 0, up to 1")
    require(worker, "dtype", worker.dtype in (None, *DTYPES), ", ".join(DTYPES))


class OutputReader:
    """
    Reads rationales in continuations of a model's prompts.

    Args:
        processor: the model's.
        style: how it was asked.
    """

    def __init__(self, processor: Any, style: Style) -> None:
        self.tokenizer, self.style = processor.tokenizer, style
        # special tokens to leave out: all but the tags of reasoning, which some tokenizers count among them
        self._hidden = {
            id_
            for id_, token in self.tokenizer.added_tokens_decoder.items()
            if token.special and split_reasoning(token.content)[0] is None
        }

    def read(self, continuation: Continuation, prompt_end: str) -> Rationale | Failure:
        """Find the rationale in the continuation of a prompt, whose end may have opened the block of reasoning."""
        opened = prompt_end.rstrip().endswith(THINK)
        ids = [token for token in continuation.token_ids if token not in self._hidden]
        output = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text = parse_rationale(THINK + output if opened else output, self.style)
        finish_reason = "stop" if continuation.ended else "length"
        if text:
            return Rationale(text, len(continuation.token_ids), finish_reason)
        return Failure(why_empty(self.style, output, finish_reason))


def end_ids(generation_config: Any, processor: Any) -> set[int]:
    """Collect the tokens that end an output: the model's own, of which there may be several, and the tokenizer's."""
    ends = getattr(generation_config, "eos_token_id", None)
    ends = set(ends if isinstance(ends, list) else [ends])
    return (ends | {processor.tokenizer.eos_token_id}) - {None}
