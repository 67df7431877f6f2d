"""Make an engine of its short form: what `--engine` takes, and `MMEmbR1(..., engine="vllm")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmemb_r1.engines.http_engine import HttpEngine
from mmemb_r1.engines.protocol import Engine
from mmemb_r1.engines.served import FOLDER, is_exported
from mmemb_r1.engines.vllm_engine import VllmEngine
from mmemb_r1.servers import is_address

CONNECTION_OPTIONS = ("concurrency", "timeout", "patience", "max_retries", "key_env", "verify")
FORMS = '"local", "vllm", or one or two addresses of servers, http://HOST:PORT, with a comma between them'


def exported_folder(path: str | Path) -> Path | None:
    """Find the model without its backbone in an exported folder; `None` where this is another checkpoint."""
    return Path(path, FOLDER) if is_exported(path) else None


def engine_of(form: str, exported: Path | None, **options: Any) -> Engine | None:
    """
    Make an engine.

    Args:
        form: one of `FORMS`: vLLM in this process, or the server that reads states and, where rationales are written,
            the one that writes them.
        exported: from [`exported_folder`].
        **options: of the engine.

    Returns:
        `None` for `"local"`.

    Raises:
        ValueError: for another form; for `"vllm"` where the model was not exported for it.
    """
    if form == "local":
        return None
    if form == "vllm":
        if exported is None:
            raise ValueError(
                'engine="vllm" needs the folder that `mmemb-r1 export vllm MODEL DIR` writes; export the checkpoint, '
                "and load the model from that folder."
            )
        return VllmEngine(exported.parent, **options)
    addresses = form.split(",")
    if len(addresses) <= 2 and all(map(is_address, addresses)):
        if unknown := sorted(set(options) - set(CONNECTION_OPTIONS)):
            raise ValueError(
                f"{unknown[0]!r} is no option of servers; allowed: {', '.join(CONNECTION_OPTIONS)}. Options of vLLM "
                "itself are given where a server is started."
            )
        return HttpEngine(*addresses, **options)
    raise ValueError(f"engine={form!r} is not known; allowed: {FORMS}.")
