"""Say what an engine is asked for: states of prompts, and rationales after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module


class EngineError(OSError):
    """Report an engine that can't go on, whatever the inputs: it is away, has died, or serves another model."""


@dataclass(frozen=True)
class EnginePrompt:
    """
    Hold what a model is fed for one input.

    Attributes:
        token_ids: of the rendered prompt and of what followed it so far. Each picture is one placeholder: the engine
            puts as many in its place as the picture has tokens.
        num_rendered: how many of them are the rendered prompt's.
        images: the pictures, RGB, in the order of their placeholders.
        messages: the conversation that was rendered, for engines that render it themselves.
    """

    token_ids: tuple[int, ...]
    num_rendered: int
    images: tuple[Image.Image, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()

    @property
    def followed(self) -> tuple[int, ...]:
        """List the ids after the rendered prompt."""
        return self.token_ids[self.num_rendered :]

    def then(self, token_ids: Sequence[int]) -> EnginePrompt:
        """Go on with these ids after the rendered prompt, in the place of what followed it so far."""
        return replace(self, token_ids=self.token_ids[: self.num_rendered] + tuple(token_ids))


@dataclass(frozen=True)
class Words:
    """
    Say which tokens a rationale is made of.

    Attributes:
        end_id: ends it.
        suppressed_ids: can't occur in it.
    """

    end_id: int
    suppressed_ids: tuple[int, ...]

    @classmethod
    def of(cls, config: Any) -> Words:
        """Read them from an [`MMEmbR1Config`]."""
        return cls(config.end_think_token_id, tuple(config.suppressed_token_ids))


class Engine(Protocol):
    """
    Run a model's backbone; head and gate are applied to what it gives.

    Any number of threads may call `states` and `rationales` at the same time.

    Attributes:
        name: of the kind of engine, kept with vectors that it made.
        concurrency: how many calls it works on at a time. With 1 they wait for each other, and one call for many
            prompts is worth most; with more, what fails was tried again by the engine itself, as often as it makes
            sense.
    """

    name: str
    concurrency: int

    def check(self, module: MMEmbR1Module) -> None:
        """
        Refuse a model that this engine can't run as the local one does. Nothing is started or sent.

        Raises:
            ValueError: that says what it can't do.
        """

    def start(self, module: MMEmbR1Module, writes: bool) -> None:
        """
        Get ready, and make sure that it is this model which the engine runs. Called before each use.

        Args:
            module: the model.
            writes: whether rationales may be asked for, and not states alone.

        Raises:
            ValueError: if it can't write any.
            EngineError: if it can't start, can't be reached, or runs another model.
        """

    def states(self, prompts: Sequence[EnginePrompt]) -> Tensor:
        """
        Read prompts.

        Returns:
            `(N, H)` float32: the state of each prompt's last token after the last norm.

        Raises:
            InputError: naming the index of a prompt that can't be read.
            EngineError: if the engine can't go on.
        """

    def rationales(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]) -> list[list[int]]:
        """
        Write on after prompts, the likeliest token each time, to the end of a rationale or so many tokens.

        Returns:
            Ids per prompt, with that of the end where it was reached.

        Raises:
            InputError, EngineError: as `states`.
        """

    def close(self) -> None:
        """End what was started; it starts again when it is used again."""


@runtime_checkable
class LikelihoodEngine(Engine, Protocol):
    """Run a model's backbone, and tell how likely it found what it wrote, which a second look reads."""

    def likely_rationales(
        self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        """
        Write as `rationales` does.

        Returns:
            Per prompt the ids, and as many log-probabilities: of the whole vocabulary, at temperature 1.

        Raises:
            InputError, EngineError: as `states`.
        """


def likelihood_engine(engine: Engine) -> LikelihoodEngine:
    """
    Take an engine that a second look can read.

    Raises:
        ValueError: if it tells no log-probabilities.
    """
    if not isinstance(engine, LikelihoodEngine):
        raise ValueError(
            f"The engine {engine.name!r} tells no log-probabilities of what it writes (it has no likely_rationales), "
            "and the second look of this model reads them; pass second_look=False."
        )
    return engine


def engine_facts(model: Any) -> dict[str, str]:
    """Say what makes a model's vectors, where an engine does: they differ from local ones by more than rounding."""
    engine = getattr(model, "engine", None)
    return {} if engine is None else {"engine": engine.name}
