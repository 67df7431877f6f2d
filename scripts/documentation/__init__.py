"""Make the documentation site: `make docs`."""

from __future__ import annotations
