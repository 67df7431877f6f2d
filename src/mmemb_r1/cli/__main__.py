"""`python -m mmemb_r1.cli` is `mmemb-r1`, for launchers that start modules."""

from __future__ import annotations

import sys

from mmemb_r1.cli import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
