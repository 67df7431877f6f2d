"""Choose the model to measure, and the device."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_pairs import loaded
from mmemb_r1 import MMEmbR1

QUICKSTART = "runs/quickstart/model"
RANDOM_100M = {
    "hidden_size": 768, "num_layers": 12, "num_heads": 12, "vision_hidden_size": 384, "vision_layers": 4,
    "image_size": 224,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """
    A model to be measured; small enough to be handed to another process.

    Attributes:
        model: a checkpoint; `None` is an untrained backbone of about 100 M parameters.
        device: where it runs.
        dtype: of its weights.
        attention: implementation of attention, as transformers names it; `None` leaves the model's own.
        compiled: whether decode steps are compiled.
        seed: of weights, inputs and lengths.
        clock: `wall`, or `cpu` for the seconds that all threads of the process were at work: on a CPU that other jobs
            use, too, with one thread.
    """

    model: str | None = QUICKSTART
    device: str = "cpu"
    dtype: str = "float32"
    attention: str | None = None
    compiled: bool = False
    seed: int = 0
    clock: str = "wall"

    @classmethod
    def of(cls, args: Namespace) -> Subject:
        """Read the options of `add_arguments`."""
        model = None if args.random_100m else args.model
        if model is not None and not Path(model).is_dir():
            raise SystemExit(f"{model} is no folder. Name a checkpoint, or make one with `make quickstart`.")
        return cls(model, args.device, args.dtype, args.attn, args.compile, args.seed, args.clock)

    @property
    def name(self) -> str:
        """For tables."""
        return "a random backbone of 100 M parameters" if self.model is None else self.model

    def load(self) -> MMEmbR1:
        """The model. A gate that is a constant, as an untrained one is, gets random weights: it can then decide."""
        model, processor = loaded(self.model, self.seed, **({} if self.model else RANDOM_100M))
        gate = model.gate.output
        if not bool(gate.weight.any()):
            torch.nn.init.normal_(gate.weight, std=0.02, generator=torch.Generator().manual_seed(self.seed))
        model.eval().to(device=self.device, dtype=getattr(torch, self.dtype))
        if self.attention is not None:
            model.set_attn_implementation(self.attention)
        if self.compiled:
            model.compile_decoding()
        return MMEmbR1.from_model(model, processor)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options that every benchmark of the engine has."""
    parser.add_argument("--model", default=QUICKSTART, help="a checkpoint")
    parser.add_argument("--random-100m", action="store_true", help="an untrained backbone instead of a checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--attn", help="implementation of attention: eager, sdpa, flash_attention_2")
    parser.add_argument("--compile", action="store_true", help="compile decode steps")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: with other jobs, one thread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file")


def device_facts(device: str) -> dict[str, Any]:
    """Name a device."""
    is_cuda = torch.device(device).type == "cuda"
    return {"device": torch.cuda.get_device_name(device) if is_cuda else device}
