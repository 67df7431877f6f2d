"""Be the executor that runs the model in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from mmemb_r1.encoding import DECODED_PER_READ, input_sizes
from mmemb_r1.modeling.backbones_mmemb_r1 import can_join, is_per_token, join_batches, model_inputs
from mmemb_r1.modeling.decoding_mmemb_r1 import Decoder, RationaleState
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.paths_mmemb_r1 import round_ids
from mmemb_r1.modeling.scheduling_mmemb_r1 import read_prompts, start_thinking
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.executor import Answer, Prepared, Row, ThinkingLostError

# What a batch costs whatever is in it, in tokens. A CPU is at work with every token (measured: 40 to 130 with a model
# of 24 layers of 256); an accelerator is not before there are thousands (estimated).
FIXED_COST = {"cpu": 96}
FIXED_COST_OF_ACCELERATORS = 2048


@dataclass(eq=False)
class _Thinker:
    """Hold a row that thinks, and what reading it gave."""

    row: Row
    state: RationaleState
    direct: Tensor
    gate_prob: float
    prompt_tokens: int


class LocalExecutor:
    """
    Run a model that is in memory.

    Args:
        model: the [`MMEmbR1`].
        max_input_tokens: of one input; more is an error of that input.
        decode_batch_size: rows that think at once.
        allow_remote_media: whether pictures and videos may be web addresses.
    """

    def __init__(
        self,
        model: MMEmbR1,
        *,
        max_input_tokens: int,
        decode_batch_size: int = 32 * DECODED_PER_READ,
        allow_remote_media: bool = False,
    ) -> None:
        self.model = model.eval()
        self.max_input_tokens = max_input_tokens
        self.decode_batch_size = decode_batch_size
        self.media = MediaOptions.of(model[0].model.config, allow_remote_media)
        self.fixed_cost = FIXED_COST.get(model.device.type, FIXED_COST_OF_ACCELERATORS)
        self._joins = True  # whether rows can begin while others are at work
        self.reset()

    @property
    def thinking(self) -> int:
        return len(self._thinkers)

    @property
    def room(self) -> int:
        if self.thinking and not self._joins:
            return 0
        return max(self.decode_batch_size - self.thinking, 0)

    def reset(self) -> None:
        self._thinkers: list[_Thinker] = []
        self._decoder = Decoder(self.model[0].model, across_batches=True)

    # Before its turn: any thread

    def prepare(self, rows: Sequence[Row]) -> list[Prepared | ValueError]:
        prepared: dict[Row, Prepared | ValueError] = {}
        texts: dict[str | None, list[Row]] = {}
        for row in rows:
            if row.has_media:
                prepared[row] = self._too_large(row) or self._alone(row)
            else:
                texts.setdefault(row.prompt, []).append(row)
        for prompt, group in texts.items():
            try:
                made = self._rendered(group, prompt)
            except InputError:
                made = [self._alone(row) for row in group]
            prepared |= zip(group, made, strict=True)
        return [prepared[row] for row in rows]

    def _too_large(self, row: Row) -> ValueError | None:
        """Refuse pictures by their size, before they are decoded."""
        module = self.model[0]
        (size,) = input_sizes([row.value], module.processor, module.model.config, self.media)
        return self._length_error(int(size.tokens))

    def _length_error(self, tokens: int) -> ValueError | None:
        if tokens <= self.max_input_tokens:
            return None
        return ValueError(
            f"it has about {tokens} tokens, and this server reads {self.max_input_tokens} of one input at most. Send "
            "shorter text, or fewer or smaller pictures."
        )

    def _alone(self, row: Row) -> Prepared | ValueError:
        try:
            return self._rendered([row], row.prompt)[0]
        except InputError as error:
            return ValueError(error.fault)

    def _rendered(self, rows: Sequence[Row], prompt: str | None) -> list[Prepared | ValueError]:
        """Prepare rows, one or texts, in one call of the processor."""
        allow = self.media.allow_remote
        features = self.model.preprocess([row.value for row in rows], prompt=prompt, allow_remote_media=allow)
        made: list[Prepared | ValueError] = []
        for one in _split(model_inputs(features)):
            tokens = one["input_ids"].shape[1]
            made.append(self._length_error(tokens) or Prepared(tokens, one, _kind(one)))
        return made

    def rationale(self, answer: Answer) -> str:
        rounds = round_ids(self.model[0].model.config, answer.rationale_ids)
        return "\n".join(self.model.tokenizer.decode(one).strip() for one in rounds)

    # The scheduler's thread

    @torch.inference_mode()
    def read(self, rows: Sequence[Row]) -> list[tuple[Row, Answer]]:
        model = self.model[0].model
        features = [row.prepared.features for row in rows if row.prepared is not None]
        batch = features[0] if len(rows) == 1 else join_batches(features, self.model.tokenizer.pad_token_id)
        read, context = read_prompts(model, batch_to_device(batch, model.device), [row.options for row in rows])
        gate_prob = read.gate_prob.float().tolist()
        lengths = [one["input_ids"].shape[1] for one in features]
        begun = [
            _Thinker(rows[at], state, read.direct[at].clone(), gate_prob[at], lengths[at])
            for at, state in read.states.items()
        ]
        done = [at for at in range(len(rows)) if at not in read.states]
        vectors = self._finished(read.direct[done]) if done else []
        if begun:
            self._joins = can_join(context.cache)
            try:
                start_thinking(self._decoder, read.states, context)
            except Exception as error:
                raise ThinkingLostError("rows could not join those that think") from error
            self._thinkers += begun
        return [
            (rows[at], Answer(vector, gate_prob[at], lengths[at])) for at, vector in zip(done, vectors, strict=True)
        ]

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Answer]]:
        self._decoder.step()
        return self._leaving([thinker for thinker in self._thinkers if thinker.state.done])

    @torch.inference_mode()
    def stop(self, rows: Sequence[Row]) -> list[tuple[Row, Answer]]:
        wanted = set(rows)
        leaving = [thinker for thinker in self._thinkers if thinker.row in wanted]
        self._decoder.stop([thinker.state for thinker in leaving])
        return self._leaving(leaving, stopped=True)

    def _leaving(self, leaving: list[_Thinker], stopped: bool = False) -> list[tuple[Row, Answer]]:
        if not leaving:
            return []
        gone = set(map(id, leaving))
        self._thinkers = [thinker for thinker in self._thinkers if id(thinker) not in gone]
        last = [thinker.state.embeddings[-1] if thinker.state.embeddings else thinker.direct for thinker in leaving]
        vectors = self._finished(torch.stack([vector.to(last[0].dtype) for vector in last]))
        config = self.model[0].model.config
        return [
            (
                thinker.row,
                Answer(
                    vector,
                    thinker.gate_prob,
                    thinker.prompt_tokens,
                    rounds=len(thinker.state.embeddings),
                    reasoning_tokens=thinker.state.num_tokens,
                    rationale_ids=tuple(thinker.state.rationale_ids(config)),
                    stopped=stopped,
                ),
            )
            for thinker, vector in zip(leaving, vectors, strict=True)
        ]

    def _finished(self, embeddings: Tensor) -> Iterable[np.ndarray]:
        """Make vectors `(N, D)` of the adaptive model those of the whole model, in memory."""
        features: dict[str, Any] = {"sentence_embedding": embeddings}
        for module in list(self.model.children())[1:]:
            features = module(features)
        return features["sentence_embedding"].float().cpu().numpy()


def _split(features: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a batch, of one row or of texts, into its rows without their padding."""
    ids, mask = features["input_ids"], features["attention_mask"]
    if len(ids) == 1:
        return [features]
    starts = (mask.shape[1] - mask.sum(dim=1)).tolist()
    per_token = {name: value for name, value in features.items() if is_per_token(value, ids)}
    return [
        {name: value[row : row + 1, start:].clone() for name, value in per_token.items()}
        for row, start in enumerate(starts)
    ]


def _kind(features: dict[str, Any]) -> tuple[Any, ...]:
    """
    Say with which rows one can be joined: those that have the same features per token and pictures of the same size.
    Where pictures are stored flat, patch by patch, any go together, and with texts, too.
    """
    ids = features["input_ids"]
    per_token = tuple(sorted(name for name, value in features.items() if is_per_token(value, ids)))
    sizes = {name: tuple(value.shape[2:]) for name, value in features.items() if value.ndim > 2}
    return per_token, *sorted(sizes.items())
