"""Which encoder a model gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmemb_r1.evaluation.encoders.adaptive import AdaptiveEncoder, Explains, check_cache
from mmemb_r1.evaluation.encoders.encoder import Encoder
from mmemb_r1.evaluation.encoders.plain import PlainEncoder
from mmemb_r1.evaluation.settings import Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from mmemb_r1.embedding_cache import EmbeddingCache

ADAPTIVE_MODULE = "MMEmbR1Module"


def encoder_of(
    model: Explains | SentenceTransformer, settings: Settings, cache: EmbeddingCache | None = None
) -> Encoder:
    """
    The model as the evaluation asks it.

    Args:
        model: an [`MMEmbR1`], or anything with its `explain`; or any sentence-transformers model.
        settings: how it is evaluated.
        cache: where embeddings are kept and found again; of mmemb-r1 models alone.

    Raises:
        ValueError: if a model that can't think is asked to, or one that can't use a cache is given one.
    """
    if hasattr(model, "explain"):
        return AdaptiveEncoder(model, settings, cache)
    plain: SentenceTransformer = model
    if any(type(module).__name__ == ADAPTIVE_MODULE for module in plain):
        raise ValueError(
            f"this mmemb-r1 checkpoint was loaded as a {type(model).__name__}, which does not say when it thought; "
            "load it as mmemb_r1.MMEmbR1"
        )
    check_cache(plain, cache)
    if asked := {*settings.modes, settings.document_reasoning} - {"never"}:
        raise ValueError(
            f"{type(model).__name__} is no adaptive model, so it can't be asked to think: {min(asked)!r} was asked "
            "for, allowed for it is 'never' alone"
        )
    return PlainEncoder(plain, settings)
