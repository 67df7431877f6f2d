"""Read public data sets, and files of one's own, as the tables of pairs and rationales that training reads."""

from __future__ import annotations
