"""An mmemb-r1 model under mteb, so that MIEB and ViDoRe tasks run with options of reasoning."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError("mteb is missing: pip install 'mmemb-r1[eval]'") from error

from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DOCUMENT_REASONING = "document_reasoning"
OPTIONS = (*REASONING_OPTIONS, DOCUMENT_REASONING)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class MTEBModel(SentenceTransformerEncoderWrapper):
    """
    What `mteb.evaluate` takes for a model, made of an [`MMEmbR1`].

        mteb.evaluate(MTEBModel(model, reasoning="auto"), tasks=mteb.get_tasks(["VidoreDocVQARetrieval"]))

    Queries, and inputs of tasks that have no documents, are embedded with the options that are given here or in
    `encode_kwargs`; documents with `document_reasoning` in the place of `reasoning`.

    mteb keeps results by the model's name and revision, which is a digest of the checkpoint, and by options given
    here. It does not look at `encode_kwargs`, so with these a warning says to give `cache=None`.

    Args:
        name: its id, `org/name`. Default: the id that it was loaded by from the Hub, else `local/` and the last part
            of its path.
        **options: `reasoning`, `gate_threshold`, `max_reasoning_tokens` and `max_reasoning_rounds` of `encode`, and
            `document_reasoning`, whose default is the config's. What is not given is the checkpoint's.

    Raises:
        ValueError: if an option or the name is not such.
    """

    def __init__(self, model: SentenceTransformer, *, name: str | None = None, **options: Any) -> None:
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ValueError(f"the option {unknown[0]!r} is not known; allowed: {', '.join(OPTIONS)}")
        if name is not None and not HUB_ID.fullmatch(name):
            raise ValueError(f"the name is {name!r}; allowed: an id, org/name")
        with warnings.catch_warnings():
            # saved prompts go by the kinds of MMEB's tasks, of which mteb knows none
            warnings.filterwarnings("ignore", "Some prompts are not in the expected format|Task name", UserWarning)
            super().__init__(model)
        self.options = options
        self.mteb_model_meta = self.mteb_model_meta.model_copy(
            update={
                "name": name or model_id(model[0].model.name_or_path),
                "revision": checkpoint_fingerprint(*model),
                "modalities": [kind for kind in model[0].modalities if kind != "message"],
                "experiment_kwargs": options or None,
            }
        )

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Any:
        """Embed what mteb's loader gives, see [`SentenceTransformerEncoderWrapper.encode`]."""
        if late := [option for option in OPTIONS if option in kwargs and kwargs[option] != self.options.get(option)]:
            warnings.warn(
                f"{late[0]!r} was given in encode_kwargs, which mteb's cache of results does not look at. Give it to "
                "MTEBModel instead, or cache=None to mteb.evaluate.",
                stacklevel=2,
            )
        options = {**self.options, **kwargs}
        of_documents = options.pop(DOCUMENT_REASONING, None)
        if prompt_type == PromptType.document:
            options["reasoning"] = of_documents or self.model[0].model.config.document_reasoning
        return super().encode(inputs, prompt_type=prompt_type, **options)


def model_id(source: str) -> str:
    """
    The Hub id that a model was loaded by; of a folder, one of the same form.

    >>> model_id("runs/quickstart/my model/"), model_id("org/mmemb-r1"), model_id("")
    ('local/my-model', 'org/mmemb-r1', 'local/model')
    """
    if HUB_ID.fullmatch(source) and not Path(source).exists():
        return source
    return "local/" + (re.sub(r"[^\w.-]+", "-", source.rstrip("/").split("/")[-1]) or "model")
