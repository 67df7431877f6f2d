"""Track where a row is in its rationales: what it feeds next, and what it has come to."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor

from .second_look_mmemb_r1 import Look


@dataclass
class RationaleState:
    """
    Track the rationales of one row, and where it is in them.

    Attributes:
        max_tokens: budget of one rationale.
        max_rounds: rationales at most.
        max_fed: once this row was fed so many tokens it begins no further rationale, however many rounds are left.
        threshold: gate probability from which it thinks another round.
        token_ids: everything the row was fed: `<think> r </think> <|embed|>`, once per round.
        embeddings: `(D,)` after each rationale.
        num_tokens: rationale tokens, control tokens not counted.
        num_truncated: rationales that were longer than the budget: `</think>` was inserted.
        feed: the token that it feeds next; `None` when it is done.
        ahead: what it feeds after that, whatever is chosen: the rest of what opens or closes a rationale.
        look: where it collects what a second look needs. Default: nothing is collected.
    """

    max_tokens: int
    max_rounds: int
    max_fed: int = sys.maxsize
    threshold: float = -math.inf
    token_ids: list[int] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    num_tokens: int = 0
    num_truncated: int = 0
    feed: int | None = None
    ahead: list[int] = field(default_factory=list)
    look: Look | None = None
    inside: bool = False  # a rationale, what opens it and what ends it included
    spent: int = 0  # tokens of the current rationale
    finished: int = 0  # of `token_ids`, those up to the last embedding

    @property
    def done(self) -> bool:
        """Tell whether the last embedding is there."""
        return self.feed is None and bool(self.embeddings)

    def rationale_ids(self, config: Any) -> list[int]:
        """List the ids of the rationales, with the control tokens between rounds but not those around the whole."""
        return self.token_ids[len(config.opening_ids) : len(self.token_ids) - 1 - len(config.closing_ids)]

    def copy(self) -> RationaleState:
        """Make one that goes on by itself from here."""
        look = self.look and replace(self.look, logps=[*self.look.logps])
        ids, embeddings, ahead = [*self.token_ids], [*self.embeddings], [*self.ahead]
        return replace(self, token_ids=ids, embeddings=embeddings, ahead=ahead, look=look)

    def begin(self, opening: Sequence[int], num_read: int = 0) -> None:
        """Open a rationale, of whose `opening` so many tokens were read with the prompt."""
        self.token_ids += opening[:num_read]
        self.feed, *self.ahead = opening[num_read:]
        self.inside, self.spent = True, 0

    def take(self, config: Any) -> str:
        """Feed the next token; return what follows: `"ahead"`, `"choose"` (of a token) or `"embed"`."""
        token = self.feed
        self.token_ids.append(cast(int, token))
        if self.inside and not self.ahead:
            if token != config.end_think_token_id:
                return "choose"
            self.inside, self.ahead = False, list(config.closing_ids)
        if not self.ahead:
            return "embed"
        self.feed, *self.ahead = self.ahead
        return "ahead"

    def follow(self, chosen: int, end_id: int, logp: float | None = None) -> None:
        """
        Go on inside a rationale with the `chosen` token, whose log-probability a `look` wants, or end it if the budget
        is spent.
        """
        if self.spent >= self.max_tokens:
            self.num_truncated += chosen != end_id
            chosen = end_id
        self.spent += chosen != end_id
        self.num_tokens += chosen != end_id
        if self.look is not None and logp is not None and chosen != end_id:
            self.look.logps.append(logp)
        self.feed = chosen

    def embed(self, embedding: Tensor, again: bool, opening: Sequence[int]) -> None:
        """Take the embedding `(D,)` at the end of a rationale, and think `again` if there is a round left."""
        self.embeddings.append(embedding)
        self.feed, self.finished = None, len(self.token_ids)
        if again and len(self.embeddings) < self.max_rounds and len(self.token_ids) < self.max_fed:
            self.begin(opening)

    def stop(self) -> None:
        """Give up the rationale that is being written: what was embedded before it stays, its cost is counted."""
        if self.look is not None and self.feed is not None:
            self.look.logps = self.look.logps[: len(self.look.logps) - self.spent]
        self.token_ids = self.token_ids[: self.finished]
        self.feed, self.ahead, self.inside = None, [], False


def think_again(gate_logits: Tensor, states: Sequence[RationaleState]) -> Tensor:
    """Tell which rows reach the threshold of their state, by their gate logits `(N,)` -> `(N,)` bool."""
    gate_prob = gate_logits.sigmoid()
    return gate_prob >= gate_prob.new_tensor([state.threshold for state in states])
