"""Draw the rationales of rollouts with vLLM, in the process that trains and with the weights that are trained."""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.engines.checks import MAX_SUPPRESSED
from mmemb_r1.engines.vllm_errors import refusals
from mmemb_r1.modeling.backbones_mmemb_r1 import takes_videos
from mmemb_r1.modeling.options_mmemb_r1 import LARGEST, context_length
from mmemb_r1.training.adapters import backbone_weights
from mmemb_r1.training.adaptive.config import AdaptiveGRPOConfig
from mmemb_r1.training.adaptive.prompts import Messages
from mmemb_r1.training.adaptive.written import Written
from mmemb_r1.training.distributed import without_adapters
from mmemb_r1.training.tables import StoredInputs
from mmemb_r1.training.vllm_chat import INSTALL, ChatPrompt, chat_prompt

NEVER = -100.0  # the least that vLLM adds to a logit
_CPU_OPTIONS = {
    "enforce_eager": True,  # the compiler takes minutes
    # Drawing from a seed fails beside a prompt that is read in parts: "CPU Generator does not use offset".
    "enable_chunked_prefill": False,
    "block_size": 32,  # the smallest: what rollouts share is read once in whole blocks, of 128 tokens by default
}
_WEIGHTS = "model.safetensors"
_IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"  # what vLLM reads when an engine is made


class VllmRationales:
    """
    Hold an engine of vLLM that writes rationales as the backbone of the policy would.

    It is started with the backbone as a plain vision-language model, and gets the present weights whenever
    `sync_weights` is called: adapters merged, under the names that the plain model has, through vLLM's own
    `reload_weights`, which prepares them for its kernels anew; what it kept of prompts and pictures is then forgotten.
    (TRL's way, `load_weights` on vLLM's module, leaves out both: on a CPU it finds no weights there any more.)

    Args:
        model: the policy, possibly with adapters.
        processor: its processor, which keeps limits of pictures by its own settings.
        args: the config of the trainer.
        device: where the policy is trained.

    Raises:
        ImportError: if vLLM is not installed.
        ValueError: if vLLM can't draw this model's rationales here; see [`check_vllm`].
    """

    def __init__(self, model: Any, processor: ProcessorMixin, args: AdaptiveGRPOConfig, device: torch.device) -> None:
        self._model, self._processor, self._config = model, processor, without_adapters(model).config
        self._temperature = args.temperature
        self._folder = tempfile.TemporaryDirectory(prefix="mmemb-r1-vllm-")
        folder = Path(self._folder.name)
        save_backbone(model, processor, folder)
        self._llm = _start(folder, _engine_options(without_adapters(model), processor, args, device))
        (folder / _WEIGHTS).unlink()  # the processor may be read again, the weights are not

    @classmethod
    def of_trainer(cls, trainer: Any) -> VllmRationales:
        """Start an engine for a trainer whose model, processor and config are there."""
        if trainer.is_fsdp_enabled:
            raise ValueError(_of_processes(trainer.args.world_size, True))
        model, device = trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.device
        return cls(model, trainer.processing_class, trainer.args, device)

    @torch.no_grad()
    def sync_weights(self) -> None:
        """Give vLLM the present weights; TRL calls it before rollouts are drawn with others than the last ones."""
        with backbone_weights(self._model) as weights:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self.forget()

    def forget(self) -> None:
        """Let vLLM forget what it kept of prompts and pictures that it read."""
        self._llm.llm_engine.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not forget the prompts that it read with earlier weights.")

    def close(self) -> None:
        """End the engine, and free what it holds."""
        self._llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()

    def of(self, prompts: Sequence[Messages], ids: Sequence[Sequence[int]]) -> VllmPrompts:
        """Make a writer of the prompts of a batch, with their pictures; `ids` are those that the policy reads."""
        template = self._processor.chat_template
        return VllmPrompts(self, [chat_prompt(self._processor, one, template) for one in prompts], ids)

    def _sampling(self, max_tokens: int, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=self._temperature,
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=[self._config.end_think_token_id],
            ignore_eos=True,  # another end than that of rationales is none
            logit_bias=dict.fromkeys(forbidden_ids(self._config), NEVER),
            logprobs=0,
            detokenize=False,
        )


class VllmPrompts:
    """Write rationales of the prompts of a batch: see [`~mmemb_r1.training.adaptive.written.Writer`]."""

    def __init__(self, engine: VllmRationales, prompts: Sequence[ChatPrompt], ids: Sequence[Sequence[int]]) -> None:
        self._engine, self._prompts, self._ids = engine, prompts, ids

    def write(self, begun: Sequence[tuple[int, list[int]]], max_tokens: int, seeds: Sequence[int]) -> list[Written]:
        """Draw what follows each beginning, up to the id that ends a rationale."""
        requests = [self._prompts[place].then(after).request for place, after in begun]
        sampling = [self._engine._sampling(max_tokens, seed) for seed in seeds]
        outputs = self._engine._llm.generate(requests, sampling, use_tqdm=False)
        for (place, after), output in zip(begun, outputs, strict=True):
            wanted, read = [*self._ids[place], *after], list(output.prompt_token_ids)
            if read != wanted:
                raise ValueError(
                    f"vLLM reads prompt {place} of a batch as {len(read)} tokens, the model as {len(wanted)}, or as "
                    "others: rationales would be of another prompt. vLLM's processor of this backbone differs from "
                    "that of transformers; set use_vllm=False."
                )
        return [_written(output.outputs[0]) for output in outputs]


def _written(output: Any) -> Written:
    ids = list(output.token_ids)
    return Written(ids, [chosen[token].logprob for token, chosen in zip(ids, output.logprobs, strict=True)])


def check_vllm(model: Any, args: AdaptiveGRPOConfig, prompts: Sequence[Dataset]) -> None:
    """
    Check that vLLM can draw the rationales of a model, before anything is started.

    Raises:
        ImportError: if vLLM is not installed.
        ValueError: if the run has several processes or a sharded model, weights are quantised, more ids can't occur in
            a rationale than vLLM can forbid, or prompts hold videos.
    """
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"use_vllm=True needs vLLM, and importing it failed ({error}): {INSTALL}. Or set use_vllm=False: the "
            "model then writes its rationales itself."
        ) from error
    if args.world_size > 1:
        raise ValueError(_of_processes(args.world_size, False))
    if getattr(without_adapters(model), "is_quantized", False) or getattr(model, "is_quantized", False):
        raise ValueError(
            "use_vllm=True with quantised weights: adapters can't be merged into them, and vLLM needs them merged. "
            "Leave quantization out, or set use_vllm=False."
        )
    forbidden = len(forbidden_ids(without_adapters(model).config))
    if forbidden > MAX_SUPPRESSED:
        raise ValueError(
            f"use_vllm=True with a vocabulary of which {forbidden} ids can't occur in a rationale; vLLM forbids "
            f"{MAX_SUPPRESSED} at most. Set use_vllm=False."
        )
    if any("video" in query for table in prompts for query in StoredInputs(table, "query")):
        raise ValueError(
            "use_vllm=True with queries that hold videos: vLLM would choose their frames itself. Leave these pairs "
            "out, or set use_vllm=False."
        )


def _of_processes(number: int, is_sharded: bool) -> str:
    return (
        f"use_vllm=True in a run of {number} processes{', which shard the model' * is_sharded}; allowed: one process, "
        "which holds the whole model. Start it without accelerate launch, or set use_vllm=False."
    )


def forbidden_ids(config: Any) -> list[int]:
    """List the ids that can't occur in a rationale, of all that a backbone has logits of."""
    size = config.vlm_config.get_text_config().vocab_size
    known = size if config.rationale_vocab_size is None else config.rationale_vocab_size
    return sorted({*config.suppressed_token_ids, *range(known, size)})


def save_backbone(model: Any, processor: ProcessorMixin, folder: Path) -> None:
    """
    Save the backbone of a model, adapters merged, as a plain vision-language model with its processor.

    Input and output embeddings are two tensors there even where the model has one for both: vLLM, which prepares each
    layer's weights for its kernels when they change, does not notice a change of the other layer's.
    """
    vlm = without_adapters(model).vlm
    config = copy.deepcopy(vlm.config)
    config.architectures = [type(vlm).__name__]
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    with backbone_weights(model) as weights:
        own = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        save_file(_unshared(own), folder / _WEIGHTS, metadata={"format": "pt"})


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what shares its memory with another: a file of weights holds each by itself."""
    seen: set[int] = set()
    found = {}
    for name, value in weights.items():
        found[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return found


def _engine_options(
    model: Any, processor: ProcessorMixin, args: AdaptiveGRPOConfig, device: torch.device
) -> dict[str, Any]:
    """Choose the options of `vllm.LLM`: float types as in the trainer's own passes, log-probabilities as sampled."""
    longest = args.vllm_max_model_length or args.max_input_tokens or context_length(model.config)
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
    return {
        "runner": "generate",
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": longest if longest < LARGEST else None,
        "max_num_seqs": args.per_device_train_batch_size * args.steps_per_generation,
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        **(_CPU_OPTIONS if device.type == "cpu" else {}),
        "enable_prefix_caching": True,  # rollouts of a group share their prompt, rounds what was written before
        "logprobs_mode": "processed_logprobs",  # after temperature and biases: as the token was drawn
        "generation_config": "vllm",  # the folder's own would change how tokens are drawn
        "seed": args.seed,
        **({"limit_mm_per_prompt": {"video": 0}} if takes_videos(processor) else {}),
    }


def _start(folder: Path, options: Mapping[str, Any]) -> Any:
    """Start an engine in this process."""
    from vllm import LLM

    refused: tuple[type[Exception], ...] = (*refusals(), RuntimeError)
    with _in_this_process(), _random_state_kept():
        try:
            return LLM(str(folder), **options)
        except refused as error:
            raise ValueError(
                f"vLLM could not start with this model's backbone ({error}). Its options follow from max_input_tokens "
                "(or vllm_max_model_length), vllm_gpu_memory_utilization and the size of a batch; or set "
                "use_vllm=False."
            ) from error


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Let vLLM make engines in the process that asks for them: weights then need not be sent."""
    before = os.environ.get(_IN_PROCESS)
    os.environ[_IN_PROCESS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_IN_PROCESS]
        else:
            os.environ[_IN_PROCESS] = before


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Undo that vLLM seeds all generators of the process: what is drawn must not depend on whether it was started."""
    state, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(of_numpy)  # noqa: NPY002
