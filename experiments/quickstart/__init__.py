"""What `quickstart.sh` needs beside the product's commands: an untrained model, rationales to rehearse, a showcase."""

from __future__ import annotations
