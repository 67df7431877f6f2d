"""Split rationales of Atlas into sentences, each a round of its own."""

from __future__ import annotations

import re

from datasets import Dataset

# After a full stop, where the next sentence begins with a capital letter or a domain (".in is the domain of India");
# not after "St.": what ends a sentence is longer.
_SENTENCE = re.compile(r"(?<=\S{3}[.])\s+(?=[.]|(?![a-z\d])\w)")


def sentences(text: str) -> list[str]:
    """
    >>> sentences("It is the flag of St. Lucia. So the capital of St. Lucia is Castries.")
    ['It is the flag of St. Lucia.', 'So the capital of St. Lucia is Castries.']
    """
    return _SENTENCE.split(text.strip())


def with_segments(rationales: Dataset) -> Dataset:
    """A table of rationales with their sentences in the column `segments`."""
    return rationales.add_column("segments", [sentences(text) for text in rationales["text"]])
