"""
Use the adaptive model as a model of sentence-transformers: what users import.

BERTopic, KeyBERT and others look for "sentence_transformers" in the name of the class's module, hence this one's.
"""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.util import truncate_embeddings
from torch.nn.functional import normalize
from transformers import PreTrainedModel, ProcessorMixin

from mmemb_r1.content import as_input, content_key, distinct
from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.encoding import (
    adaptive_rows,
    check_device,
    media_options,
    read_batches,
    row_options,
    spread,
    thinking_options,
)
from mmemb_r1.engines import Engine, ServedModule
from mmemb_r1.engines.choice import engine_of, exported_folder
from mmemb_r1.hub.source import check_model
from mmemb_r1.loading import Loading
from mmemb_r1.modeling import sentence_mmemb_r1
from mmemb_r1.modeling.files_mmemb_r1 import as_new, copy_content
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.loading_mmemb_r1 import loading
from mmemb_r1.modeling.modeling_mmemb_r1 import MODULE_REFERENCE, MMEmbR1Model
from mmemb_r1.modeling.options_mmemb_r1 import check_option, check_options, require_one_space
from mmemb_r1.modeling.paths_mmemb_r1 import round_ids
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.processes import check_inputs_travel
from mmemb_r1.progress import progress_bar, step_of
from mmemb_r1.stream import StreamSummary, encode_stream
from mmemb_r1.thinker import Thinker, ThinkerError
from mmemb_r1.thinking import Thinking

# Instructions for the kinds of tasks of MMEB, by name: `encode(..., prompt_name="grounding")`. The two that
# `encode_query` and `encode_document` look for are empty: whoever trains with an instruction saves it there.
PROMPTS = {
    "query": "",
    "document": "",
    "classification": "Tell which class the input belongs to.",
    "question-answering": "Answer the question about the input.",
    "retrieval": "Find what the input describes or shows.",
    "grounding": "Find the part of the picture that the text names.",
    "document-retrieval": "Find the page that answers the question.",
    "moment-retrieval": "Find the part of the video that the text tells of.",
}
ENCODE = inspect.signature(SentenceTransformer.encode)  # that of `encode_query` and `encode_document` is the same
TRANSFORMERS = ">=5.19"  # as in setup.cfg


class MMEmbR1(Loading):
    """
    An adaptive embedding model: a [`SentenceTransformer`] whose `encode` thinks where that helps.

    Loads what `SentenceTransformer(path, trust_remote_code=True)` loads, without the flag, because the code comes from
    this package. `encode`, `encode_query` and `encode_document` take `reasoning` (`"auto"`, `"always"`, `"never"`),
    `gate_threshold`, `max_reasoning_tokens`, `max_reasoning_rounds`, `second_look` and `allow_remote_media` besides
    their usual arguments. What is not said to be a query is embedded directly by default: `document_reasoning` of the
    config.

    Args:
        model_name_or_path (`str`): a directory or Hub id.
        engine ([`Engine`] or `str`): what runs the backbone, see [`engine`]. Default: this process, by torch.
        thinker: another model that writes the rationales, see [`~mmemb_r1.thinker.load_thinker`]; it is not saved with
            this one. Default: the model writes them itself.
        thinker_form (`str`, *optional*): where its rationale goes: `"tokens"`, between the tokens of thought, or
            `"text"`, after the text of the input. Default: the config's, which is `"text"` for a converted embedder
            that has not learnt to think.
        **kwargs: as for [`SentenceTransformer`].
    """

    _embedding_cache: EmbeddingCache | None = None
    _engine: Engine | None = None
    thinking: Thinking | None = None  # how another model thinks for this one

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        engine: Engine | str | None = None,
        thinker: Any = None,
        thinker_form: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_device(kwargs.get("device"))
        exported = None if engine is None or model_name_or_path is None else exported_folder(model_name_or_path)
        if exported is not None:
            model_name_or_path = str(exported)
        if kwargs.get("truncate_dim") is not None:
            kwargs["truncate_dim"] = check_option("truncate_dim", kwargs["truncate_dim"])
        if model_name_or_path is None and not kwargs.get("modules"):
            raise ValueError("MMEmbR1 needs a checkpoint: a folder or a Hub id.")
        if model_name_or_path is not None:
            check_model(
                str(model_name_or_path),
                **{name: kwargs[name] for name in ("revision", "cache_folder", "local_files_only") if name in kwargs},
                token=kwargs.get("token"),
            )
        # of adapters alone, the model that they belong to may be on the Hub
        if model_name_or_path is not None and (Path(model_name_or_path) / "config.json").is_file():
            kwargs.setdefault("local_files_only", True)  # the Hub would be asked about the base model otherwise
        with loading(model_name_or_path):
            super().__init__(model_name_or_path, **kwargs)
        first = type(self[0]).__name__
        if not isinstance(self[0], MMEmbR1Module):
            raise ValueError(
                f"{model_name_or_path or 'This'} is no mmemb-r1 checkpoint: its first module is {first}, not "
                f"{MMEmbR1Module.__name__}. Load it with SentenceTransformer."
            )
        self.engine = engine_of(engine, exported) if isinstance(engine, str) else engine
        self.set_thinker(thinker, thinker_form)

    @classmethod
    def from_model(cls, model: MMEmbR1Model, processor: ProcessorMixin, **kwargs: Any) -> MMEmbR1:
        """Wrap a model that is in memory; it stays on its device."""
        kwargs.setdefault("device", str(model.device))
        kwargs = {"similarity_fn_name": "cosine", "prompts": dict(PROMPTS), **kwargs}
        return cls(modules=[MMEmbR1Module(model, processor)], **kwargs)

    @classmethod
    def from_vlm(cls, vlm: PreTrainedModel, processor: ProcessorMixin, **config: Any) -> MMEmbR1:
        """Turn a vision-language model into an (untrained) embedding model, see [`MMEmbR1Model.from_vlm`]."""
        return cls.from_model(*MMEmbR1Model.from_vlm(vlm, processor, **config))

    @property
    def max_image_tokens(self) -> int | None:
        """
        Limit the tokens of one picture: a larger one is made smaller, its aspect kept. It is saved in the config.
        Default: `None`, as large as the processor makes them.
        """
        return self[0].max_image_tokens

    @max_image_tokens.setter
    def max_image_tokens(self, value: int | None) -> None:
        self[0].max_image_tokens = value

    def encode(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        Embed inputs, see [`SentenceTransformer.encode`].

        Args:
            inputs: one input or a list: a string, a PIL image, a dict with any of `text`, `image`, `video` and
                `instruction`, or chat messages.
            *args, **kwargs: those of [`SentenceTransformer.encode`], and `reasoning` (`"auto"`, `"always"`,
                `"never"`), `gate_threshold`, `max_reasoning_tokens`, `max_reasoning_rounds`; their defaults are in the
                config: its `reasoning` for queries (`encode_query`, `task="query"`, `prompt_name="query"`) and where a
                `gate_threshold` is given, its `document_reasoning` for everything else. `second_look=False` gives the
                vector after a rationale as it is, where the config has weights to mix it with the direct one.
                `batch_size` inputs are read at once (fewer if they have more than `max_batch_tokens` tokens), and
                `decode_batch_size` think at once, four times as many unless it is given. Equal inputs are embedded
                once. With `allow_remote_media=True`, pictures and videos may be web addresses. Vectors that
                `truncate_dim` shortens have unit norm again, if the model's have, unless `normalize_embeddings=False`.

        Raises:
            InputError: a `ValueError` that names the index of an input that can't be embedded.
            ValueError: for an option that is not known or out of its range, see `OPTIONS` of `options_mmemb_r1`.
        """
        inputs, options = self._arguments(inputs, args, kwargs)
        whole = options.get("output_value", "sentence_embedding") is None
        if not whole:
            require_one_space(self[0].model.config, row_options(self[0].model.config, options)["reasoning"])
        is_single = self.is_singular_input(inputs)
        values = [inputs] if is_single else [as_input(value) for value in inputs]
        unique, index = distinct(values, media_options(self, options))
        try:
            outputs = super().encode(inputs if is_single else unique, **options)
        except InputError as error:
            raise error.at(self._place_of(error, values, options)) from error
        if whole and options.get("normalize_embeddings"):  # sentence-transformers leaves it to the caller there
            for item in [outputs] if is_single else outputs:
                item["sentence_embedding"] = normalize(item["sentence_embedding"], dim=-1)
        return outputs if len(unique) == len(values) else spread(outputs, index)

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """
        Turn inputs into the tensors of a batch, see [`MMEmbR1Module.preprocess`].

        sentence-transformers would guess the kind of the whole batch first, and refuse all of it without saying which
        input it means; where the module raises a `TypeError` it would leave out the prompt.
        """
        return self[0].preprocess(inputs, prompt=prompt, **kwargs) if len(inputs) else {}

    def get_model_kwargs(self) -> list[str]:
        """List the options of `encode` besides those of sentence-transformers."""
        return [*super().get_model_kwargs(), "max_batch_tokens"]

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> Any:
        """
        Embed inputs on one device. sentence-transformers embeds batch by batch; here the inputs of several
        batches think together.
        """
        device = torch.device(self._resolve_inference_device(device))
        self.eval()
        later = {other: self._options_of(name, other, options) for name, other in list(self.named_children())[1:]}
        if is_watched := self._is_watched():
            if self.engine is not None:
                raise ValueError(
                    "Hooks and compiled models are called batch by batch, and an engine calls no model here; remove "
                    "the hooks, or set model.engine to None."
                )
            later = {}
        rows: list[Any] = [None] * len(inputs)
        with _progress(show_progress_bar, len(inputs)) as advance:
            if is_watched:
                rows_of_parts = self._called(inputs, device, prompt, batch_size, options)
            else:
                rows_of_parts = adaptive_rows(self, inputs, device, prompt, batch_size, options, self.embedding_cache)
            for places, features in rows_of_parts:
                for other, taken in later.items():
                    features = other(features, **taken)
                embeddings = features["sentence_embedding"]
                if truncate_dim is not None:
                    if check_option("truncate_dim", truncate_dim) > embeddings.shape[-1]:
                        raise ValueError(
                            f"An embedding of {embeddings.shape[-1]} dimensions can't be truncated to {truncate_dim}."
                        )
                    embeddings = truncate_embeddings(embeddings, truncate_dim)
                if output_value is None:
                    features["sentence_embedding"] = embeddings
                    items: Any = [{name: value[row] for name, value in features.items()} for row in range(len(places))]
                else:
                    items = normalize(embeddings, dim=1) if normalize_embeddings else embeddings
                    items = items.cpu() if save_to_cpu else items
                for place, item in zip(places, items, strict=True):
                    rows[place] = item
                advance(len(places))
        if output_value is None:
            return rows
        return torch.stack(rows) if rows else torch.tensor([], device=device)

    def _is_watched(self) -> bool:
        """Tell whether calls of the model are watched by hooks, or were compiled."""
        hooks = [
            hooks for part in (self, *self.children()) for hooks in (part._forward_hooks, part._forward_pre_hooks)
        ]
        return any(hooks) or self._compiled_call_impl is not None

    def _called(
        self, inputs: list[Any], device: torch.device, prompt: str | None, batch_size: int, options: dict[str, Any]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Embed batch by batch through the model's `__call__`, for hooks and `compile()`; without the cache."""
        if "thinker" in thinking_options(self, options):
            raise ValueError(
                "Hooks and compile() watch calls of this model, and with a thinker inputs don't think in these. "
                'Remove them, or the thinker, or pass reasoning="never".'
            )
        plan, read, options = read_batches(self, inputs, range(len(inputs)), device, prompt, batch_size, options)
        for places, features in zip(plan, read, strict=True):
            yield places, self(features, **options)

    def start_multi_process_pool(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Start processes that embed, see [`SentenceTransformer.start_multi_process_pool`]."""
        if self.engine is not None:
            raise ValueError(
                "An engine makes use of several devices itself; leave out the list of devices and the pool, and give "
                "the engine its own options (tensor_parallel_size, several servers)."
            )
        return super().start_multi_process_pool(*args, **kwargs)

    def _multi_process(self, inputs: Any, *args: Any, pool: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        check_inputs_travel(inputs)
        if pool is None:
            return super()._multi_process(inputs, *args, pool=pool, **kwargs)
        with pool.setdefault("lock", threading.Lock()):  # results of two calls would be mixed up
            if pool.get("is_broken"):
                raise RuntimeError(
                    "A call with this pool was interrupted, and its results would be taken for those of this one. "
                    "Stop the pool and start a new one."
                )
            pool["is_broken"] = True
            try:
                result = super()._multi_process(inputs, *args, pool=pool, **kwargs)
            except (ValueError, TypeError):
                pool["is_broken"] = False  # what a worker raises comes when all have answered
                raise
            pool["is_broken"] = False
            return result

    def _options_of(self, name: str, module: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Pick the options that a module takes, as in sentence-transformers."""
        if isinstance(module, Router):
            return options
        known = {*(self.module_kwargs or {}).get(name, ()), *getattr(module, "forward_kwargs", ())}
        return {key: value for key, value in options.items() if key in known}

    @property
    def engine(self) -> Engine | None:
        """
        Get what runs the backbone in the place of this process; see [`mmemb_r1.engines`]. Default: `None`.

        Setting it refuses a model that the engine can't run; nothing is started before the first call.
        """
        return self._engine

    @engine.setter
    def engine(self, engine: Engine | None) -> None:
        if engine is not None:
            engine.check(self[0])
        elif isinstance(self[0], ServedModule) and self._engine is not None:
            raise ValueError("This model was loaded without its backbone; it needs an engine.")
        self._engine = engine

    @property
    def embedding_cache(self) -> EmbeddingCache | None:
        """Get the cache of embeddings; set it to a folder's name. Default: none."""
        return self._embedding_cache

    @embedding_cache.setter
    def embedding_cache(self, cache: EmbeddingCache | str | Path | None) -> None:
        self._embedding_cache = EmbeddingCache(cache) if isinstance(cache, str | Path) else cache

    @property
    def thinker(self) -> Thinker | None:
        """Get the other model that writes the rationales; setting it is [`set_thinker`] in the config's form."""
        return None if self.thinking is None else self.thinking.thinker

    @thinker.setter
    def thinker(self, thinker: Any) -> None:
        self.set_thinker(thinker)

    def set_thinker(self, thinker: Any, form: str | None = None) -> None:
        """
        Let another model write the rationales from now on; `None`: this one itself.

        Args:
            thinker, form: as `thinker` and `thinker_form` of the constructor. None such is a `ValueError`.
        """
        self.thinking = Thinking.of(thinker, form, self[0].model.config)

    def encode_query(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Embed queries: [`encode`] with the prompt that is saved under the name `query`, if there is one."""
        inputs, options = self._arguments(inputs, args, kwargs)
        return super().encode_query(inputs, **options)

    def encode_document(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Embed documents: [`encode`] with the prompt `document` and the config's `document_reasoning`."""
        inputs, options = self._arguments(inputs, args, kwargs)
        return super().encode_document(inputs, **options)

    def _arguments(self, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Name the arguments besides the inputs. Shortened vectors get unit norm, if nothing else is said."""
        if inputs is None:
            inputs = kwargs.pop("sentences", None)  # its name in older versions of sentence-transformers
        named = ENCODE.bind(self, inputs, *args, **kwargs).arguments
        options = {name: value for name, value in named.items() if name not in ("self", "inputs", "kwargs")}
        options = check_options(options | named.get("kwargs", {}))
        check_device(options.get("device"))
        if options.get("prompt_name") == "query" and "task" not in options:
            options.setdefault("reasoning", self[0].model.config.reasoning)
        shortened = options.get("truncate_dim", self.truncate_dim)
        if shortened is not None and self[0].model.config.normalize:
            options.setdefault("normalize_embeddings", True)
        return inputs, options

    def _place_of(self, error: InputError, values: list[Any], options: dict[str, Any]) -> int:
        """Find the input that an error is about: sentence-transformers sorts them before it makes batches."""
        if isinstance(error, ThinkerError) and error.value is None:  # of another process
            keys = (content_key(value, media_options(self, options)) for value in values)
            return next((index for index, key in enumerate(keys) if key == error.key), error.index)
        if error.value is not None:
            return next((index for index, value in enumerate(values) if value is error.value), error.index)
        for index, value in enumerate(values):  # another process raised it, which knows its own part alone
            try:
                self.preprocess([value], allow_remote_media=options.get("allow_remote_media", False))
            except InputError:
                return index
        return error.index

    def encode_stream(self, inputs: Iterable[Any], output: str | Path, **kwargs: Any) -> StreamSummary:
        """
        Embed a corpus that is larger than memory into a folder of files, and go on there after a kill.

        Args:
            inputs: as for `encode`, one by one.
            output: the folder.
            **kwargs: `ids`, `shard_size`, `file_format`, `rationales` and `show_progress_bar`, see
                [`mmemb_r1.stream.encode_stream`], and options of `encode`.
        """
        return encode_stream(self, inputs, output, **kwargs)

    def explain(self, inputs: Any, **kwargs: Any) -> list[dict[str, Any]] | dict[str, Any]:
        """
        Embed inputs, and say which of them were reasoned about and with which rationale.

        Args:
            inputs: as for `encode`.
            **kwargs: as for `encode`.

        Returns:
            One dict per input (a single dict for a single input): `embedding` `(D,)`, `gate_prob`, `reasoned`,
            `num_reasoning_tokens`, `num_reasoning_rounds`, and the text of the `rationale` (`""` if none; rounds are
            separated by newlines). With a second look also `second_look_weight`, how much of the embedding is that
            after the rationale.
        """
        outputs = self.encode(inputs, output_value=None, **kwargs)
        return [self._explained(item) for item in outputs] if isinstance(outputs, list) else self._explained(outputs)

    def _explained(self, item: dict[str, Any]) -> dict[str, Any]:
        ids = [int(token) for token in item["rationale_ids"] if token >= 0]
        rounds = round_ids(self[0].model.config, ids)
        return {
            "embedding": item["sentence_embedding"].float().cpu().numpy(),
            "gate_prob": float(item["gate_prob"]),
            "reasoned": bool(item["reasoned"]),
            "num_reasoning_tokens": int(item["num_reasoning_tokens"]),
            "num_reasoning_rounds": int(item["num_reasoning_rounds"]),
            "rationale": "\n".join(self.tokenizer.decode(one).strip() for one in rounds),
            **({"second_look_weight": float(item["second_look_weight"])} if "second_look_weight" in item else {}),
        }

    def _get_model_config(self) -> dict[str, Any]:
        requirement = {
            "specifier": TRANSFORMERS,
            "reason": "It is built on composite configurations.",
        }
        return {**super()._get_model_config(), "requirements": {"transformers": requirement}}

    def _create_model_card(self, path: str, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        from mmemb_r1.model_card import TAGS, write_model_card

        folder, ours = Path(path), "generated_from_trainer" not in self.model_card_data.tags
        if self._model_card_text:
            header = ModelCard(self._model_card_text, ignore_metadata_errors=True).data.to_dict()
            ours &= set(TAGS) <= set(header.get("tags") or [])
        # what sentence-transformers tells of a training of its own, and a card that somebody wrote, say more; adapters
        # alone have nothing for a card of ours
        if not ours or not (folder / "config.json").is_file():
            super()._create_model_card(path, model_name, *args, **kwargs)
            return
        if self._model_card_text:
            (folder / "README.md").write_text(self._model_card_text, encoding="utf-8")
        repo_id = model_name or self.model_card_data.model_id
        is_id = repo_id is not None and repo_id.count("/") == 1 and not Path(repo_id).exists()
        # anew, from what lies in this folder: results that were measured are those of what was loaded
        write_model_card(path, repo_id=repo_id if is_id else None, keep=True)

    def save(self, path: str | None, *args: Any, **kwargs: Any) -> None:
        """
        Save a complete, flat repository: weights (safetensors), configuration, processor, and the code that loads it
        where this package is not installed. As in sentence-transformers, `None` saves nothing.
        """
        if path is None:
            return
        super().save(path, *args, **kwargs)
        modules_file = Path(path) / "modules.json"
        modules = json.loads(modules_file.read_text(encoding="utf-8"))
        for module in modules:
            if module["type"].split(".")[-1] == MMEmbR1Module.__name__:
                module["type"] = MODULE_REFERENCE
        modules_file.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
        for source in Path(sentence_mmemb_r1.__file__).parent.glob("*_mmemb_r1.py"):
            copy_content(source, Path(path, source.name))
        as_new(Path(path).rglob("*.safetensors"))  # of modules after the first, too


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], object]]:
    """Yield a function to tell how many more inputs are done: to nobody unless progress is to be shown."""
    if not shown:
        yield bool
        return
    with progress_bar() as bar, step_of(bar, "Inputs", total) as advance:
        yield advance
