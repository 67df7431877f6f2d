"""The study: every claim of the method checked on Atlas, by training without one part of it at a time."""

from __future__ import annotations
