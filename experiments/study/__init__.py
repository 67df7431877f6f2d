"""Check the method's claims on Atlas by training without one part of it at a time."""

from __future__ import annotations
