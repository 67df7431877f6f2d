"""An mmemb-r1 model under mteb, so that MIEB and ViDoRe tasks run with options of reasoning."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError("mteb is missing: pip install 'mmemb-r1[eval]'") from error

from mmemb_r1.engines.protocol import engine_facts
from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText
from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS, check_same_space

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

DOCUMENT_REASONING = "document_reasoning"
OPTIONS = (*REASONING_OPTIONS, DOCUMENT_REASONING)
MEDIA = ("image", "audio", "video")
# of `encode`'s options, those that change no vector
HARMLESS = (
    "batch_size", "show_progress_bar", "device", "pool", "chunk_size", "convert_to_numpy", "convert_to_tensor",
    "max_batch_tokens", "decode_batch_size", "task_metadata", "hf_split", "hf_subset",
)  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class MTEBModel(SentenceTransformerEncoderWrapper):
    """
    What `mteb.evaluate` takes for a model, made of an [`MMEmbR1`].

        mteb.evaluate(MTEBModel(model, reasoning="auto"), tasks=mteb.get_tasks(["VidoreDocVQARetrieval"]))

    Queries, and inputs of tasks that have no documents, are embedded with the options that are given here or in
    `encode_kwargs`; documents with `document_reasoning` in the place of `reasoning`.

    mteb keeps results by the model's name, by options given here, and by the revision, which is a digest of all else
    that changes a vector or a score: the checkpoint, a thinker, prompts, `truncate_dim`, the similarity, how videos
    are sampled.
    It does not look at `encode_kwargs`: with these, runs that differ in nothing else would find each other's results,
    so a warning says to give `cache=None`.

    Texts of a task are texts, also where one is the name of a file or an address of a picture. Empty ones, which
    `encode` refuses, are embedded as an empty turn; a warning counts them.

    Args:
        name: its id, `org/name`. Default: the id that it was loaded by from the Hub, else `local/` and the last part
            of its path.
        **options: `reasoning`, `gate_threshold`, `max_reasoning_tokens`, `max_reasoning_rounds` and `second_look` of
            `encode`, and `document_reasoning`, whose default is the config's. What is not given is the checkpoint's.

    Raises:
        ValueError: if an option or the name is not such.
    """

    _meta: Any

    def __init__(self, model: SentenceTransformer, *, name: str | None = None, **options: Any) -> None:
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise ValueError(f"the option {unknown[0]!r} is not known; allowed: {', '.join(OPTIONS)}")
        if name is not None and not HUB_ID.fullmatch(name):
            raise ValueError(f"the name is {name!r}; allowed: an id, org/name")
        with warnings.catch_warnings():
            # saved prompts go by the kinds of MMEB's tasks, of which mteb knows none
            warnings.filterwarnings("ignore", "Some prompts are not in the expected format|Task name", UserWarning)
            super().__init__(model, num_frames=model[0].model.config.num_video_frames)
        self.options = options
        self._meta = self._meta.model_copy(
            update={
                "name": name or model_id(model[0].model.name_or_path),
                "modalities": [kind for kind in model[0].modalities if kind != "message"],
                "experiment_kwargs": options or None,
            }
        )

    @property
    def mteb_model_meta(self) -> Any:
        """Describe the model as it is now: whoever changes it does not find its earlier results."""
        model = self.model
        prompts = [model.prompts, model.default_prompt_name, self.model_prompts]
        settings = [*prompts, model.truncate_dim, model.similarity_fn_name, self.num_frames, self.fps, self.max_frames]
        if getattr(model, "thinking", None) is not None:
            settings.append(model.thinking.identity)
        settings += engine_facts(model).values()
        text = json.dumps([checkpoint_fingerprint(*model), settings], sort_keys=True)
        return self._meta.model_copy(update={"revision": blake2b(text.encode(), digest_size=32).hexdigest()})

    @mteb_model_meta.setter
    def mteb_model_meta(self, meta: Any) -> None:
        self._meta = meta

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Any:
        """Embed what mteb's loader gives, see [`SentenceTransformerEncoderWrapper.encode`]."""
        late = [name for name in kwargs if name not in HARMLESS and kwargs[name] != self.options.get(name)]
        if late:
            warnings.warn(
                f"{late[0]!r} was given in encode_kwargs, which mteb's cache of results does not look at. Give it to "
                "MTEBModel instead, or cache=None to mteb.evaluate.",
                stacklevel=2,
            )
        options = {**self.options, **kwargs}
        config = self.model[0].model.config
        of_documents = options.pop(DOCUMENT_REASONING, None)
        if prompt_type is not None:  # else the task has one kind of inputs, which are compared with one another
            of_queries = options.get("reasoning") or config.reasoning
            check_same_space(config.spaces, of_queries, of_documents or config.document_reasoning)
        if prompt_type == PromptType.document:
            options["reasoning"] = of_documents or config.document_reasoning
        loader: Any = _Loader(inputs)
        embeddings = super().encode(loader, prompt_type=prompt_type, **options)
        if loader.empty:
            logger.warning("%d of %d texts are empty; embedded as an empty turn", loader.empty, len(embeddings))
        return embeddings


class _Loader:
    """Read a loader of mteb's, whose texts are texts whatever they look like, and may be empty."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset = loader, loader.dataset
        self.has_media = bool(set(MEDIA) & set(loader.dataset.features))
        self.empty = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "collate_fn":  # mteb gives videos their own
            self.loader.collate_fn = value
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            alone = not set(MEDIA) & set(batch)
            if "text" in batch:
                batch = {**batch, "text": [self._text(text, alone) for text in batch["text"]]}
            yield batch

    def _text(self, text: str, alone: bool) -> Any:
        if not text.strip() and alone:
            self.empty += 1
            text = EmptyText()
        return text if self.has_media else {"text": text}  # beside media, mteb makes such dicts itself


def model_id(source: str) -> str:
    """
    The Hub id that a model was loaded by; of a folder, one of the same form.

    >>> model_id("runs/quickstart/my model/"), model_id("org/name"), model_id("")
    ('local/my-model', 'org/name', 'local/model')
    """
    if HUB_ID.fullmatch(source) and not Path(source).exists():
        return source
    return "local/" + (re.sub(r"[^\w.-]+", "-", source.rstrip("/").split("/")[-1]) or "model")
