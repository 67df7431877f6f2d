"""Refuse to compare direct with reasoned embeddings where these are two spaces (`spaces: 2`, as in UME-R1)."""

from __future__ import annotations


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
