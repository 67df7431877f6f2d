"""
What encoding by vLLM costs beside vLLM itself: the time of `encode(..., engine)` that no call of the engine covers,
and its inputs per second against those of `LLM.encode` and `LLM.generate` on the same prompts, given at once.

    python -m benchmarks.vllm_overhead [--model runs/quickstart/model | --random-100m] [--inputs 2000]
        [--max-reasoning-tokens 32] [--repeats 1] [--output vllm_overhead.json]

Run it where vLLM is installed, such as in the environment of `make test-vllm`. The checkpoint is exported into a
temporary folder first. Without a GPU, VLLM_CPU_KVCACHE_SPACE says how many GiB each of the two instances may keep.

Prints a table; writes JSON with `--output`.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.report import save, show, verdict
from benchmarks.engine.subject import Subject, add_arguments
from benchmarks.engine.workload import inputs_of
from mmemb_r1 import MMEmbR1
from mmemb_r1.encoding import media_options
from mmemb_r1.engines import EnginePrompt, VllmEngine
from mmemb_r1.engines.prompts import engine_prompts
from mmemb_r1.export import export_vllm

MOST_OUTSIDE = 0.05
LEAST = {"never": 0.9, "always": 0.85}  # of vLLM's own inputs per second


class Watched(VllmEngine):
    """An engine that notes when it is asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.intervals: list[tuple[float, float]] = []
        self._noting = threading.Lock()

    def states(self, prompts: Sequence[EnginePrompt]) -> Any:
        return self._noted(lambda: VllmEngine.states(self, prompts))

    def rationales(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]) -> Any:
        return self._noted(lambda: VllmEngine.rationales(self, prompts, max_tokens))

    def _noted(self, ask: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        try:
            return ask()
        finally:
            with self._noting:
                self.intervals.append((begun, time.perf_counter()))

    def covered(self) -> float:
        """Seconds in which at least one question was with the engine; forgets them."""
        total, until = 0.0, 0.0
        for begun, ended in sorted(self.intervals):
            total += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        self.intervals = []
        return total


def timed(act: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def measure(model: MMEmbR1, engine: Watched, values: list[Any], max_tokens: int, repeats: int) -> list[dict[str, Any]]:
    """
    Measure never and always.

    Args:
        model: with the engine.
        engine: the same.
        values: inputs, all different.
        max_tokens: of a rationale.
        repeats: rounds; medians are taken.
    """
    config, module = model[0].model.config, model[0]
    options = {"max_reasoning_tokens": max_tokens, "max_reasoning_rounds": 1, "show_progress_bar": False}
    prompts = engine_prompts(module.processor, config, values, None, media_options(model, {}))
    opened = [prompt.then(config.opening_ids) for prompt in prompts]

    def own(way: str) -> None:
        VllmEngine.states(engine, prompts)
        if way == "always":
            written = VllmEngine.rationales(engine, opened, [max_tokens + 1] * len(opened))
            closing = [config.end_think_token_id, *config.closing_ids]
            after = [one.then([*one.followed, *ids, *closing]) for one, ids in zip(opened, written, strict=True)]
            VllmEngine.states(engine, after)

    rows = []
    for way in LEAST:
        model.encode(values[:64], reasoning=way, **options)  # starts the instances
        seconds: dict[str, list[float]] = {"encode": [], "outside": [], "own": []}
        for _ in range(repeats):
            _forget(engine)
            seconds["own"].append(timed(lambda way=way: own(way)))
            _forget(engine)
            engine.covered()
            seconds["encode"].append(timed(lambda way=way: model.encode(values, reasoning=way, **options)))
            seconds["outside"].append(seconds["encode"][-1] - engine.covered())
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        rows.append(
            {"way": way, "inputs": len(values), **medians, "outside share": medians["outside"] / medians["encode"]}
        )
        rows[-1]["ratio"] = medians["own"] / medians["encode"]
    return rows


def _forget(engine: VllmEngine) -> None:
    """Empty the prefix caches, so that no round profits from the one before."""
    for llm in engine._instances.values():
        llm.reset_prefix_cache()


def main() -> None:
    """Measure, print a table, and save it."""
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--max-reasoning-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    add_arguments(parser)
    args = parser.parse_args()
    subject = Subject.of(args)
    values = inputs_of(subject, args.inputs)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "exported")
        export_vllm(subject.load(), exported)
        engine = Watched(exported, dtype=args.dtype, max_model_len=2048, enforce_eager=args.device == "cpu")
        model = MMEmbR1(str(exported), engine=engine)
        rows = measure(model, engine, values, args.max_reasoning_tokens, args.repeats)
        engine.close()
    shown = [
        {
            "reasoning": row["way"],
            "inputs/s": f"{row['inputs'] / row['encode']:.1f}",
            "inputs/s of vLLM alone": f"{row['inputs'] / row['own']:.1f}",
            "ratio": f"{row['ratio']:.2f}",
            "outside the engine": f"{row['outside share']:.1%}",
        }
        for row in rows
    ]
    verdicts = [
        verdict(
            f"{row['way']}: share outside",
            row["outside share"],
            f"<= {MOST_OUTSIDE}",
            row["outside share"] <= MOST_OUTSIDE,
        )
        for row in rows
    ]
    verdicts += [
        verdict(f"{row['way']}: ratio", row["ratio"], f">= {LEAST[row['way']]}", row["ratio"] >= LEAST[row["way"]])
        for row in rows
    ]
    show(f"{subject.name}, {args.inputs} inputs", shown, *verdicts)
    save(rows, args)


if __name__ == "__main__":
    main()
