"""Say how a model is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmemb_r1.modeling.options_mmemb_r1 import check_same_space

MODES = ("never", "always", "auto")
LOOKING = {f"{mode}-second-look": mode for mode in ("always", "auto")}  # modes of queries -> when they think
QUERY_MODES = (*MODES, *LOOKING)
LOOKS = (
    "In modes that end in *-second-look*, the vector after a rationale is mixed with the direct one, by how likely "
    "the model found what it wrote; in the others it is as it is."
)
SAME = "same"  # a mode of documents: that of the query that they are compared with
OPTIONS = ("gate_threshold", "max_reasoning_tokens", "max_reasoning_rounds")  # of `encode`, beside the mode


def mode_pairs(modes: Sequence[str], document_modes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """
    Name every mode of the queries with every mode of the documents: name -> both. The first of the documents' modes
    goes without saying.

    >>> mode_pairs(["auto"], ["never", "always"])
    {'auto': ('auto', 'never'), 'auto+always': ('auto', 'always')}
    """
    return {
        mode if document == document_modes[0] else f"{mode}+{document}": (mode, document)
        for mode in modes
        for document in document_modes
    }


def reasoning_of(mode: str) -> str:
    """
    Tell when queries of a mode, or of a pair of modes, think.

    >>> reasoning_of("auto-second-look+never"), reasoning_of("always")
    ('auto', 'always')
    """
    queries = mode.partition("+")[0]
    return LOOKING.get(queries, queries)


def default_modes(model: Any) -> tuple[str, ...]:
    """List all modes that a model has: with a second look, those with it, too."""
    if not hasattr(model, "explain"):
        return ("never",)
    return QUERY_MODES if has_second_look(model) else MODES


def has_second_look(model: Any) -> bool:
    """Tell whether a model that embeds, of whatever kind, has a second look."""
    if not hasattr(model, "embedding_cache"):  # no MMEmbR1, but something with its `explain`
        return False
    return model[0].model.config.second_look is not None


@dataclass(frozen=True)
class Settings:
    """
    Says how a model is evaluated: what makes two evaluations of it two.

    Args:
        modes: reasoning modes of the queries, at least one of `"never"`, `"always"` and `"auto"`, which give vectors
            after a rationale as they are; or of `"always-second-look"` and `"auto-second-look"`, where the model has a
            second look.
        document_reasoning: reasoning mode of the candidates, or several: every mode of the queries is then measured
            with each of them; see `mode_pairs`. `"same"`: a query that thinks is compared with candidates that think,
            another one with direct ones. Default: `"same"` for models whose direct and reasoned embeddings are two
            spaces, else `"never"`.
        batch_size: inputs that are read at once; defaults to 64.
        gate_threshold, max_reasoning_tokens, max_reasoning_rounds: `"auto"` thinks from this gate probability on;
            budget of one rationale; how often one input may think. Default: the checkpoint's.
        rationales: whether the rows hold the rationales; defaults to `False`.
        no_image: whether tasks whose queries have pictures are also asked without them, in the modes `"never"` and
            `"always"`; defaults to `False`.

    Raises:
        ValueError: if a mode is not known or stands twice, there is none, or `batch_size` is below 1.
    """

    modes: tuple[str, ...] = MODES
    document_reasoning: str | tuple[str, ...] | None = None
    batch_size: int = 64
    gate_threshold: float | None = None
    max_reasoning_tokens: int | None = None
    max_reasoning_rounds: int | None = None
    rationales: bool = False
    no_image: bool = False

    def __post_init__(self) -> None:
        sides = ("modes", self.modes, QUERY_MODES), ("modes of the documents", self.document_modes, (*MODES, SAME))
        for what, modes, known in sides:
            for mode in modes:
                if mode not in known:
                    raise ValueError(f"the mode {mode!r} is not known; allowed: {', '.join(known)}")
            if not modes or len(set(modes)) < len(modes):
                raise ValueError(f"the {what} are {list(modes)}; at least one is needed, and each once at most")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")

    @property
    def document_modes(self) -> tuple[str, ...]:
        """List the modes of the candidates."""
        modes = "never" if self.document_reasoning is None else self.document_reasoning
        return (modes,) if isinstance(modes, str) else modes

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """Name what is measured: see `mode_pairs`."""
        return mode_pairs(self.modes, self.document_modes)

    def resolved(self, spaces: int) -> Settings:
        """
        Choose the mode of the candidates, if none was given, for a model with so many spaces.

        Raises:
            ValueError: if queries and candidates of two spaces would be compared.
        """
        documents = self.document_reasoning or (SAME if spaces == 2 else "never")
        settings = replace(self, document_reasoning=documents)
        for mode, document in settings.pairs.values():
            if document != SAME:
                check_same_space(spaces, mode, document, hint=", or documents with 'same', as their queries")
        return settings

    def reasoning_options(self) -> dict[str, Any]:
        """Collect the options of `encode` that were given, without `reasoning`."""
        return {name: value for name, value in asdict(self).items() if name in OPTIONS and value is not None}
