"""
Compute what fits on GPUs of 80 GB, and write it into docs/training.md.

    python -m experiments.recipes.fits [--write] [--json FILE]

Models are built without weights (sizes.py); the rules are in memory.py. Nothing is measured on a GPU. `--write` puts
the tables between their marks in docs/training.md, in place of what stands there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from experiments.recipes.memory import CARD, FITS, Counts, Memory, Plan, count, memory_of, prepared
from experiments.recipes.sizes import SIZES, build
from mmemb_r1.formatting import table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- what fits: python -m experiments.recipes.fits --write -->", "<!-- end of what fits -->"
ROLLOUT = 1280 + 128  # tokens: a prompt with a picture of 1,024, and the model's budget for a rationale
ADAPTIVE: dict[str, Any] = {"phase": "adaptive", "tokens": 32 * ROLLOUT}
# What is trained, and on what -> the plan.
ROWS: dict[tuple[str, str, str], Plan] = {
    ("joint", "all", "1"): Plan("joint", "full"),
    ("joint", "all", "8, copies"): Plan("joint", "full", 8),
    ("joint", "all", "8, sharded"): Plan("joint", "full", 8, sharded=True),
    ("joint", "LoRA", "1 or 8, copies"): Plan("joint", "lora", 8),
    ("joint", "LoRA, without checkpointing", "1 or 8, copies"): Plan("joint", "lora", 8, checkpointing=False),
    ("joint", "QLoRA", "1 or 8, copies"): Plan("joint", "qlora", 8),
    ("adaptive", "all", "1"): Plan(method="full", **ADAPTIVE),
    ("adaptive", "all", "8, copies"): Plan(method="full", processes=8, **ADAPTIVE),
    ("adaptive", "all", "8, sharded, 4 at once"): Plan(
        "adaptive", "full", 8, sharded=True, tokens=4 * ROLLOUT, rollout_tokens=16 * ROLLOUT
    ),
    ("adaptive", "LoRA", "1 or 8, copies"): Plan(method="lora", processes=8, **ADAPTIVE),
    ("adaptive", "QLoRA", "1 or 8, copies"): Plan(method="qlora", processes=8, **ADAPTIVE),
}
# Recipe, GPUs -> the model that it is for, and whether it is sharded.
RECIPES = {
    ("joint-qwen3-vl-2b-lora", 1): "2B",
    ("joint-qwen3-vl-2b-lora", 8): "2B",
    ("joint-qwen3-vl-4b-lora", 1): "4B",
    ("joint-qwen3-vl-4b-lora", 8): "4B",
    ("joint-qwen3-vl-4b-8gpu", 8): "4B",
    ("adaptive-qwen3-vl-4b-lora", 1): "4B",
    ("adaptive-qwen3-vl-4b-lora", 8): "4B",
    ("adaptive-qwen3-vl-4b-8gpu", 8): "4B",
}


class Counted:
    """Count the parameters of each size once for each way to train it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool, bool], Counts] = {}

    def memory(self, size: str, plan: Plan) -> Memory:
        """Compute the memory of a plan for one of `SIZES`; adapters are all of one rank."""
        key = size, plan.method == "full", plan.trains_vision
        if key not in self._found:
            self._found[key] = count(prepared(build(SIZES[size]), plan))
        return memory_of(SIZES[size], plan, self._found[key])


def plan_of(recipe: str, processes: int) -> Plan:
    """Read the plan of a recipe in examples/ for a number of GPUs."""
    fields = yaml.safe_load((ROOT / "examples" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    phase = recipe.partition("-")[0]
    method = "full" if "lora" not in fields else "qlora" if "quantization" in fields else "lora"
    sharded = method == "full" and processes > 1
    size = fields["per_device_train_batch_size"]
    return Plan(
        phase,
        method,
        processes,
        sharded,
        tokens=fields["mini_batch_tokens"] if phase == "joint" else size * ROLLOUT,
        rollout_tokens=size * fields.get("gradient_accumulation_steps", 1) * ROLLOUT,
        checkpointing=fields["activation_checkpointing"] or sharded,  # accelerate's configuration does it then
        batch=size * (processes if sharded else 1),  # commands for copies divide it
        rank=(fields.get("lora") or {}).get("r", Plan.rank),
    )


def amount(value: float) -> str:
    """Write GB; what does not fit is in brackets."""
    return f"{value:.0f}" if value <= FITS else f"({value:.0f})"


def tables() -> str:
    """Write both tables: by model and method, and of each recipe by part."""
    counted = Counted()
    overview = table(
        ["phase", "trained", "GPUs", *SIZES],
        [[*row, *(amount(counted.memory(size, plan).total) for size in SIZES)] for row, plan in ROWS.items()],
    )
    parts = ["weights", "gradients", "optimizer", "activations", "logits", "rollouts"]
    rows = []
    for (recipe, processes), size in RECIPES.items():
        memory = counted.memory(size, plan_of(recipe, processes))
        cells = [f"{getattr(memory, part):.1f}" for part in parts]
        rows.append([f"`{recipe}`", processes, *cells, f"{memory.total:.0f}"])
    return f"{overview}\n\n{table(['recipe', 'GPUs', *parts, 'in all'], rows)}"


def written(page: str) -> str:
    """Put the tables into the text of a page, between their marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE.name} has no {BEGIN} and {END} for the tables to stand between.")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/training.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the parts of every row of the first table")
    args = parser.parse_args()
    if args.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(f"GB of each GPU of {CARD} GB; in brackets what is more than {FITS:.0f}\n\n{tables()}")
    if args.json:
        counted = Counted()
        found = {
            " / ".join((*row, size)): asdict(counted.memory(size, plan))
            for row, plan in ROWS.items()
            for size in SIZES
        }
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
