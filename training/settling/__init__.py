"""Read every row of a table once before training: measure it, and leave out or refuse what is broken or too long."""

from __future__ import annotations
