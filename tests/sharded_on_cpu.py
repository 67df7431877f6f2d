"""Let FSDP2 shard a model over CPU processes, which accelerate does over accelerators only.

As a script, what `accelerate launch` starts in tests in the place of `-m mmemb_r1.cli`: it runs the commands in a JSON
file, each a list of arguments.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

# What `accelerate launch` makes of examples/accelerate-fsdp-8gpu.yaml, without its precision and checkpointing.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3VLTextDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def allow() -> None:
    """From here on, environment variables that ask for FSDP are heeded on CPUs as well."""
    begin = AcceleratorState.__init__

    def begin_as_on_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        PartialState(cpu=True)
        shared = PartialState._shared_state
        wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if wanted and shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU  # the one that becomes FSDP
        begin(self, *args, **kwargs)

    AcceleratorState.__init__ = begin_as_on_gpus


@contextmanager
def fsdp2() -> Iterator[None]:
    """Shard every model that a trainer is made for in this block."""
    os.environ |= FSDP2
    yield
    for name in FSDP2:
        del os.environ[name]


if __name__ == "__main__":
    from mmemb_r1.cli import main

    allow()
    sys.exit(any([main(command) for command in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]))
