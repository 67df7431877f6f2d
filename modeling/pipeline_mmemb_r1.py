"""Embed with `pipeline("feature-extraction", repository, trust_remote_code=True)`: one input in, its embedding out."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Pipeline

from .inputs_mmemb_r1 import InputError
from .options_mmemb_r1 import REASONING_OPTIONS, check_options, require_one_space, resolve_reasoning
from .rendering_mmemb_r1 import render_inputs


class MMEmbR1Pipeline(Pipeline):
    """
    The adaptive model as a pipeline of transformers. Inputs are those of `encode`, embedded one at a time; for
    batches use sentence-transformers.

    Calls take `reasoning`, `gate_threshold`, `max_reasoning_tokens`, `max_reasoning_rounds` and `second_look` of
    [`MMEmbR1Model.embed`], `instruction` (the system turn of inputs that bring none), `allow_remote_media` (download
    pictures that are given as web addresses; off by default) and `return_tensors`.

    Returns:
        The embedding: a list of `D` numbers, or a tensor `(D,)` with `return_tensors=True`. For a list of inputs a
        list of them.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __call__(self, inputs: Any, *args: Any, batch_size: int = 1, **kwargs: Any) -> Any:
        if batch_size != 1:
            raise ValueError(
                f"batch_size={batch_size}: this pipeline embeds one input at a time; for batches use "
                "SentenceTransformer(...).encode."
            )
        try:
            return super().__call__(inputs, *args, batch_size=1, **kwargs)
        except InputError as error:  # each input is read alone
            several = inputs if isinstance(inputs, list | tuple) else []
            raise error.at(next((place for place, value in enumerate(several) if value is error.value), 0)) from error

    def _sanitize_parameters(
        self,
        instruction: str | None = None,
        allow_remote_media: bool = False,
        return_tensors: bool = False,
        **options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = [name for name in options if name not in REASONING_OPTIONS]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no option; allowed besides: {', '.join(REASONING_OPTIONS)}.")
        options = check_options(options)
        given = check_options({"instruction": instruction, "allow_remote_media": allow_remote_media})
        given |= check_options({"return_tensors": return_tensors})
        shown = {"return_tensors": True} if given.pop("return_tensors", False) else {}
        return (
            {name: value for name, value in given.items() if value},
            options,
            shown,
        )

    def preprocess(
        self, value: Any, instruction: str | None = None, allow_remote_media: bool = False
    ) -> dict[str, Tensor]:
        value = getattr(value, "messages", value)  # transformers wraps chat messages
        return render_inputs(self.processor, [value], self.model.config, instruction, allow_remote_media)[0]

    def _forward(self, features: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        options = resolve_reasoning(self.model.config, options)
        require_one_space(self.model.config, options["reasoning"])
        return {"embedding": self.model.embed(**features, **options).embeddings[0]}

    def postprocess(self, outputs: dict[str, Tensor], return_tensors: bool = False) -> Tensor | list[float]:
        return outputs["embedding"] if return_tensors else outputs["embedding"].tolist()
