"""The prior: a pool of heterogeneous workers proposes rationales for every input."""

from __future__ import annotations
