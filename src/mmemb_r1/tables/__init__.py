"""Open the tables that people have, of pairs and of rationales, in whatever file or data set they are."""

from __future__ import annotations
