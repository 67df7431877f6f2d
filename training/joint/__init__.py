"""Train reasoning and embedding together, contrastively, on selected rationales: the joint phase."""

from __future__ import annotations
