"""Make the adaptive model a module of sentence-transformers."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from .backbones_mmemb_r1 import (
    checked_limit,
    model_inputs,
    narrow_pixels,
    takes_videos,
)
from .configuration_mmemb_r1 import MMEmbR1Config
from .inputs_mmemb_r1 import InputError, to_conversations
from .loading_mmemb_r1 import loading
from .modeling_mmemb_r1 import MMEmbR1Model
from .options_mmemb_r1 import (
    FIELDS,
    REASONING_OPTIONS,
    check_options,
    nearest_name,
    require_one_space,
    resolve_reasoning,
)
from .outputs_mmemb_r1 import MMEmbR1EmbedOutput
from .rendering_mmemb_r1 import batch_features, render

INPUT_OPTIONS = ("task", "allow_remote_media")
DECODING_OPTIONS = (*REASONING_OPTIONS, "decode_batch_size")
OUTPUTS = (  # besides the embeddings
    "gate_prob",
    "reasoned",
    "num_reasoning_rounds",
    "num_reasoning_tokens",
    "num_forced_closings",
    "rationale_ids",
)


def features_of(output: MMEmbR1EmbedOutput) -> dict[str, Any]:
    """Name what the model gives for a batch as sentence-transformers does."""
    names = (*OUTPUTS, *(("second_look_weight",) if output.second_look_weight is not None else ()))
    return {"sentence_embedding": output.embeddings, **{name: output[name] for name in names}}


def _place_in_call(error: InputError) -> int:
    """
    Find an input among those of the call of `encode`.

    sentence-transformers sorts inputs before it makes batches, and shows a module nothing but its batch: what was
    passed to `encode` is found where it is called.
    """
    encode = inspect.unwrap(SentenceTransformer.encode).__code__
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code is not encode:
        frame = frame.f_back
    inputs = frame.f_locals.get("inputs") if frame is not None else None
    if not isinstance(inputs, list):
        return error.index
    return next((place for place, value in enumerate(inputs) if value is error.value), error.index)


class MMEmbR1Module(InputModule):
    """
    Embed inputs as the only module of an mmemb-r1 [`SentenceTransformer`]; rationales come out beside embeddings.

    Args:
        model ([`MMEmbR1Model`]): the adaptive model.
        processor (`ProcessorMixin`): the processor saved beside it.
    """

    forward_kwargs = {*DECODING_OPTIONS, *INPUT_OPTIONS}  # what `encode` passes on; other names are refused

    def __init__(self, model: MMEmbR1Model, processor: ProcessorMixin) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.max_image_tokens = model.config.max_image_tokens  # a limit that the backbone can't keep is refused

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def modalities(self) -> list[str]:
        videos = ["video"] if takes_videos(self.processor) else []
        return ["text", "image", *videos, "message"]

    @property
    def max_seq_length(self) -> int | None:
        """Limit the text of one input in tokens; media and template are not counted."""
        return self.model.config.max_text_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.model.config.max_text_tokens = value

    @property
    def max_image_tokens(self) -> int | None:
        """Limit the tokens of one picture; `None` leaves its size to the processor."""
        return self.model.config.max_image_tokens

    @max_image_tokens.setter
    def max_image_tokens(self, value: int | None) -> None:
        self.model.config.max_image_tokens = checked_limit(self.processor, value)

    def get_embedding_dimension(self) -> int:
        config = self.model.config
        return config.truncate_dim or config.embedding_dim or config.hidden_size

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, allow_remote_media: bool = False, **kwargs: Any
    ) -> dict[str, Tensor]:
        """
        Turn inputs into the tensors of a batch.

        Args:
            inputs: strings, pictures, dicts or chat messages, see `to_conversations`.
            prompt: the system turn of every input that brings no instruction itself.
            allow_remote_media: download pictures and videos that are given as web addresses: from public servers only,
                within limits of size and time.
            **kwargs: options of `forward`.

        Raises:
            InputError: a `ValueError` that shows the input and names its position among those of `encode`.
            ValueError: for `processing_kwargs`: pictures and videos are opened here, the config says how.
        """
        allow_remote_media = check_options({**kwargs, "allow_remote_media": allow_remote_media})["allow_remote_media"]
        if kwargs.get("processing_kwargs"):
            raise ValueError(
                f"processing_kwargs={kwargs['processing_kwargs']!r} is not supported; set max_text_tokens, "
                "max_image_tokens, num_video_frames and the limits in the config."
            )
        try:
            features = batch_features(self.processor, inputs, self.model.config, prompt, allow_remote_media)
        except InputError as error:
            raise error.at(_place_in_call(error)) from error
        return narrow_pixels(features, self.model.dtype)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """
        Embed a batch. Where gradients are on nothing is decoded. Outside of `encode`, which runs in inference mode,
        nothing is decoded that was not asked for: losses get direct embeddings, in training and in evaluation.

        Args:
            features: what `preprocess` returned.
            **options: `reasoning`, `gate_threshold`, `max_reasoning_tokens`, `max_reasoning_rounds`, `second_look` and
                `decode_batch_size` of [`MMEmbR1Model.embed`]; `task="document"`, which `encode_document` passes, has a
                default of `reasoning` of its own.
        """
        resolved = self.reasoning_options(**options)
        require_one_space(self.model.config, resolved["reasoning"])
        return next(self._embedded([features], resolved))

    def embed_batches(self, batches: Iterable[dict[str, Any]], **options: Any) -> Iterator[dict[str, Any]]:
        """
        Embed many batches, whose rows think together: see [`MMEmbR1Model.embed_batches`].

        Args:
            batches: of each what `preprocess` returned.
            **options: as for `forward`.
        """
        yield from self._embedded(batches, self.reasoning_options(**options))

    def _embedded(self, batches: Iterable[dict[str, Any]], resolved: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from map(features_of, self.model.embed_batches(map(model_inputs, batches), **resolved))

    def reasoning_options(self, **options: Any) -> dict[str, Any]:
        """Resolve the options that the model takes, by the config, the task and whether there are gradients."""
        options = check_options({name: options.get(name) for name in (*DECODING_OPTIONS, "task")})
        task = options.pop("task", None)
        if torch.is_grad_enabled():
            if options.get("reasoning", "never") != "never":
                raise ValueError(
                    f"reasoning={options['reasoning']!r} has no gradient; wrap the call in torch.no_grad(), or leave "
                    'the option out (or "never") to train the direct embedding.'
                )
            options["reasoning"] = "never"
        elif not torch.is_inference_mode_enabled():  # not `encode`, but a loss: of evaluation, or one that caches
            options.setdefault("reasoning", "never")
        return options | resolve_reasoning(self.model.config, options, task)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save model (safetensors only) and processor."""
        if not safe_serialization:
            raise ValueError("mmemb-r1 saves safetensors only; leave safe_serialization=True.")
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> MMEmbR1Module:
        """Load from a directory or the Hub; called by sentence-transformers."""
        if backend != "torch":
            raise ValueError(f"backend={backend!r} is not supported; allowed: 'torch'.")
        hub: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        with loading(os.path.join(model_name_or_path, subfolder)):
            # this class is the repository's or the package's: its siblings are used, not the repository's again
            config_home = model_name_or_path
            adapter = find_adapter_config_file(model_name_or_path, **hub)
            if adapter is not None and not cached_file(
                model_name_or_path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **hub
            ):
                # adapters alone: transformers finds the model that they belong to, and its config is there
                config_home = json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"]
            if Path(config_home).is_dir() and not Path(config_home, subfolder, CONFIG_NAME).is_file():
                # transformers would build the default model, which has billions of parameters
                raise ValueError(f"{config_home} has no {CONFIG_NAME}; name a folder that save_pretrained wrote.")
            for name in config_kwargs or {}:
                if not hasattr(MMEmbR1Config, name):  # transformers passes over it without a word
                    raise ValueError(f"MMEmbR1Config has no field {name!r}{nearest_name(name, FIELDS)}")
            config = MMEmbR1Config.from_pretrained(config_home, **hub, **(config_kwargs or {}))
            model = MMEmbR1Model.from_pretrained(model_name_or_path, config=config, **hub, **(model_kwargs or {}))
            processor = AutoProcessor.from_pretrained(
                model_name_or_path, trust_remote_code=False, **hub, **(processor_kwargs or {})
            )
            # what the tokenizer's files and the template hold is not looked at before
            render(processor, to_conversations(["a"]), config.max_text_tokens)
        return cls(model, processor)
