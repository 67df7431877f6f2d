"""Configure the adaptive embedding model: every number that it needs, nothing else."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .heads_mmemb_r1 import pooling_class
from .options_mmemb_r1 import FIELDS, GATE_INPUTS, check_option, nearest_name, resolve_reasoning

REPOSITORY_FORMAT = 3  # the newest that this code reads
# A checkpoint that sets none of these is of format 1, and code from before they were known reads it rightly.
SINCE_FORMAT = dict.fromkeys(
    ("embed_position", "embed_state", "opening_token_ids", "closing_token_ids", "spaces", "gate_inputs"), 2
) | {"second_look": 3}
READ_BY_GATE = ["state"]  # unless it is told otherwise


class MMEmbR1Config(PreTrainedConfig):
    """
    Configuration of [`MMEmbR1Model`]: a vision-language model with a reasoning gate and an embedding head.

    Args:
        vlm_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone, any architecture of `AutoModelForImageTextToText`. Defaults to an empty
            Qwen3-VL configuration.
        embed_token_id (`int`, *optional*):
            Id of the marker that ends every prompt, `<|embed|>` or a token that the backbone has already. The gate
            reads the hidden state at it, and `embed_position` says where the embedding is read.
        embed_position (`str`, *optional*, defaults to `"marker"`):
            `"marker"`: embeddings are read up to the marker; `"before"`: up to the token before it, so that a new
            marker changes nothing of the vectors that a backbone had.
        embed_state (`str`, *optional*, defaults to `"normed"`):
            Which hidden states embeddings are made of: `"normed"` (after the backbone's last norm) or `"unnormed"`
            (before it; in direction alone, so only with `pooling="last"` and `normalize=True`).
        think_token_id (`int`, *optional*):
            Id of `<think>`, which opens a rationale; `None` if it is opened by `opening_token_ids`.
        end_think_token_id (`int`, *optional*):
            Id of `</think>`, or the token with which this model ends a rationale.
        opening_token_ids (`list[int]`, *optional*):
            What an input that thinks is fed after the marker. Defaults to `<think>`.
        closing_token_ids (`list[int]`, *optional*):
            What it is fed after the end of a rationale; at the last of these the next embedding is read. Defaults to
            the marker. Empty: it is read at the token that ends the rationale.
        thinker_form (`str`, *optional*, defaults to `"tokens"`):
            Where a rationale goes that another model wrote: `"tokens"`, between the tokens around a rationale, as a
            model reads its own; `"text"`, after the text of the input, for an embedder that never learnt to think.
        spaces (`int`, *optional*, defaults to 1):
            2 if direct and reasoned embeddings can't be compared with one another, as in UME-R1.
        suppressed_token_ids (`list[int]`, *optional*, defaults to `[]`):
            Control tokens that can't occur inside a rationale.
        rationale_vocab_size (`int`, *optional*):
            Ids from this one on are rows of the vocabulary without a token; they can't occur inside a rationale.
        pooling (`str`, *optional*, defaults to `"last"`):
            How the hidden states up to an `<|embed|>` become one vector: `"last"` (the state at `<|embed|>`), `"mean"`
            or `"attention"` (learned weights); or a name that was registered with `register_pooling`.
        embedding_dim (`int`, *optional*):
            Output dimension of a linear projection after pooling. `None` means no projection: the backbone's hidden
            size.
        truncate_dim (`int`, *optional*):
            Keep only the first so many dimensions (Matryoshka), before normalisation. `None` keeps all.
        matryoshka_dims (`list[int]`, *optional*, defaults to `[]`):
            Dimensions the model was trained to be truncated to, for documentation and training.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether embeddings have unit L2 norm.
        gate_inputs (`list[str]`, *optional*, defaults to `["state"]`):
            What the gate reads: `"state"`, the hidden state at the marker, which tells what the answer looks like;
            `"words"`, the mean of the word embeddings of the prompt, which tells what kind of question it is; or both.
        gate_hidden_size (`int`, *optional*, defaults to 0):
            Width of the reasoning gate's hidden layer; 0 makes the gate linear.
        gate_init_bias (`float`, *optional*, defaults to -2.0):
            Initial gate logit of a fresh model; negative, so that an untrained gate does not think.
        gate_threshold (`float`, *optional*, defaults to 0.5):
            With `reasoning="auto"` an input thinks when its gate probability is at least this.
        second_look (`dict[str, float]`, *optional*):
            Weights of the second look, which `mmemb-r1 train gate --second-look` fits: `bias`, and one for each of
            `mean_logp`, `least_logp`, `length`, `cosine` and `gate_logit`; see second_look_mmemb_r1. `None`: none, and
            the vector of an input that thought is the one after its rationale.
        reasoning (`str`, *optional*, defaults to `"auto"`):
            Default reasoning mode of `encode_query` and `embed`: `"auto"`, `"always"` or `"never"`.
        document_reasoning (`str`, *optional*, defaults to `"never"`):
            Default reasoning mode of `encode_document`, and of `encode` where nothing says that inputs are queries:
            a corpus is embedded directly unless it is worth more.
        max_reasoning_tokens (`int`, *optional*, defaults to 128):
            Budget of one rationale in tokens. A longer one is truncated: `</think>` is inserted, and the text so far
            is embedded.
        max_reasoning_rounds (`int`, *optional*, defaults to 1):
            How often an input may think; the gate is asked again after every round.
        max_text_tokens (`int`, *optional*, defaults to 8192):
            Longer text of one input is cut before it is rendered. `None` never cuts.
        max_image_tokens (`int`, *optional*):
            Tokens of one picture: a larger one is made smaller, its aspect kept. `None` leaves its size to the
            processor.
        num_video_frames (`int`, *optional*, defaults to 8):
            Frames that are sampled evenly from a video file.
        max_image_pixels (`int`, *optional*, defaults to 67108864):
            Width x height of a picture or of a video's frame; a larger one is refused before it is decoded.
        max_video_frames (`int`, *optional*, defaults to 262144):
            Frames of a video; a longer one is refused.
        max_video_pixels (`int`, *optional*, defaults to 268435456):
            Width x height x frames of what is kept of a video; more is refused.
        repository_format (`int`, *optional*, defaults to 1):
            What a repository holds and how it is read: 2, or 3 with a `second_look`, if any field is set that older
            code would pass over.
    """

    model_type = "mmemb_r1"
    sub_configs = {"vlm_config": AutoConfig}

    vlm_config: Any = None
    embed_token_id: int | None = None
    embed_position: str = "marker"
    embed_state: str = "normed"
    think_token_id: int | None = None
    end_think_token_id: int | None = None
    opening_token_ids: list[int] | None = None
    closing_token_ids: list[int] | None = None
    thinker_form: str = "tokens"
    spaces: int = 1
    suppressed_token_ids: list[int] | None = None
    rationale_vocab_size: int | None = None
    pooling: str = "last"
    embedding_dim: int | None = None
    truncate_dim: int | None = None
    matryoshka_dims: list[int] | None = None
    normalize: bool = True
    gate_inputs: list[str] | None = None
    gate_hidden_size: int = 0
    gate_init_bias: float = -2.0
    gate_threshold: float = 0.5
    second_look: dict[str, float] | None = None
    reasoning: str = "auto"
    document_reasoning: str = "never"
    max_reasoning_tokens: int = 128
    max_reasoning_rounds: int = 1
    max_text_tokens: int | None = 8192
    max_image_tokens: int | None = None
    num_video_frames: int = 8
    max_image_pixels: int = 2**26
    max_video_frames: int = 2**18
    max_video_pixels: int = 2**28
    repository_format: int = 1
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vlm_config, PreTrainedConfig):
            self.vlm_config = AutoConfig.for_model(**{"model_type": "qwen3_vl", **(self.vlm_config or {})})
        super().__post_init__(**kwargs)
        if self.repository_format > REPOSITORY_FORMAT:
            raise ValueError(
                f"The checkpoint has repository_format={self.repository_format}, and this code of mmemb-r1 reads up to"
                f" {REPOSITORY_FORMAT}: a newer version saved it. Upgrade with pip install -U mmemb-r1, or load it "
                "with its own code: SentenceTransformer(..., trust_remote_code=True) where mmemb-r1 is not installed."
            )
        self.suppressed_token_ids = list(self.suppressed_token_ids or [])
        self.matryoshka_dims = list(self.matryoshka_dims or [])
        self.tie_word_embeddings = bool(getattr(self.vlm_config, "tie_word_embeddings", False))
        needed = [least for name, least in SINCE_FORMAT.items() if _is_new(name, getattr(self, name))]
        needed += [2] if getattr(self.vlm_config, "sequential_positions", False) else []
        self.repository_format = max(self.repository_format, *needed, 1)
        resolve_reasoning(
            self, {name: getattr(self, name) for name in ("max_reasoning_tokens", "max_reasoning_rounds")}
        )
        self._check_dimensions()
        self._check_reading()
        self._check_spaces()

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a field whenever it is set: when the config is made, loaded with other values, or changed later."""
        if name in FIELDS:
            if value is not None or "None" not in MMEmbR1Config.__annotations__[name]:
                value = check_option(name, value, FIELDS)
            if name == "pooling":
                pooling_class(value)  # an unknown one is an error here, not when the model is built
            if name == "gate_inputs":
                value = [one for one in GATE_INPUTS if one in (value or READ_BY_GATE)]  # in one order, and once
            if name in ("embedding_dim", "truncate_dim", "matryoshka_dims"):
                self._check_dimensions(**{name: value})
            if name in ("embed_state", "pooling", "normalize", "opening_token_ids", "closing_token_ids"):
                self._check_reading(**{name: value})
        elif not hasattr(self, name):
            _refuse_typo(name)
        super().__setattr__(name, value)
        if name in SINCE_FORMAT and "repository_format" in self.__dict__ and _is_new(name, value):
            super().__setattr__("repository_format", max(self.repository_format, SINCE_FORMAT[name]))

    def _check_dimensions(self, **changed: Any) -> None:
        """Refuse to truncate vectors to more than they have; while the config is being made, nothing is known yet."""
        values = {**self.__dict__, **changed}
        if not isinstance(values.get("vlm_config"), PreTrainedConfig):
            return
        width = values.get("embedding_dim") or self.hidden_size
        for dim in [*(values.get("matryoshka_dims") or []), values.get("truncate_dim")]:
            if dim is not None and dim > width:
                raise ValueError(f"An embedding of {width} dimensions can't be truncated to {dim}.")

    def _check_reading(self, **changed: Any) -> None:
        """Refuse ways to read an embedding, and to write a rationale, that can't be."""
        values = {**self.__dict__, **changed}
        if "repository_format" not in values:  # which is set after all that this is about
            return
        if values["embed_state"] == "unnormed" and not (values["pooling"] == "last" and values["normalize"]):
            raise ValueError(
                'embed_state="unnormed" gives the direction of a state, and not its length; it needs pooling="last" '
                "and normalize=True."
            )
        opening = values["opening_token_ids"]
        if opening is not None and opening[-1:] in ([], [values["end_think_token_id"]]):
            raise ValueError(
                f"opening_token_ids={opening} has to be at least one id, of which the last does not end a rationale; "
                "None is <think>."
            )
        marker, closing = values["embed_token_id"], values["closing_token_ids"]
        if marker is not None and marker in [*(values["opening_token_ids"] or []), *(closing or [])[:-1]]:
            raise ValueError(
                f"embed_token_id={marker} stands among opening_token_ids or before the last of closing_token_ids; an "
                "embedding would be read there."
            )

    def _check_spaces(self) -> None:
        """Refuse defaults that would put what is compared into two spaces; one by one they may be changed."""
        if self.spaces == 2 and self.reasoning not in ("auto", self.document_reasoning):
            raise ValueError(
                f"reasoning={self.reasoning!r} for queries and document_reasoning={self.document_reasoning!r}: with "
                "spaces=2 direct and reasoned vectors can't be compared, so that both have to be the same."
            )
        if self.spaces == 2 and self.second_look is not None:
            raise ValueError(
                "second_look mixes direct and reasoned vectors, and with spaces=2 they can't be compared, so that a "
                "mixture says nothing; leave it out."
            )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the config, see [`PreTrainedConfig.save_pretrained`]; not one that could not be loaded again."""
        self._check_spaces()
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config of what a checkpoint says, see [`PreTrainedConfig.from_dict`]."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"This is the config of a model of the type {kind!r}, not of an mmemb-r1 checkpoint. Make one of a "
                "vision-language model with `mmemb-r1 init --vlm MODEL --output DIR`, or with MMEmbR1.from_vlm."
            )
        if not config_dict.get("vlm_config"):
            raise ValueError(
                "The checkpoint's config.json has no vlm_config: nothing says which backbone its weights belong to. "
                "Copy the file from the checkpoint's origin, or save the checkpoint again."
            )
        for name in kwargs:
            _refuse_typo(name)
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made)._check_spaces()  # values that were given are set one by one
        return made

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Get the language model's configuration, which caches, vocabulary and generation read."""
        return self.vlm_config.get_text_config(*args, **kwargs)

    @property
    def opening_ids(self) -> list[Any]:
        """List what an input is fed after the marker when it thinks."""
        return [self.think_token_id] if self.opening_token_ids is None else self.opening_token_ids

    @property
    def closing_ids(self) -> list[Any]:
        """List what it is fed after the token that ends its rationale; see `reading_places` of paths_mmemb_r1."""
        return [self.embed_token_id] if self.closing_token_ids is None else self.closing_token_ids

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states."""
        return self.get_text_config().hidden_size

    @property
    def gate_reads_words(self) -> bool:
        """Tell whether the gate reads the words of the prompt."""
        return "words" in (self.gate_inputs or [])

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """Name what `pipeline("feature-extraction", ...)` runs; made anew, because transformers writes into it."""
        return {"feature-extraction": {"impl": "pipeline_mmemb_r1.MMEmbR1Pipeline", "pt": ["AutoModel"]}}

    @property
    def image_token_id(self) -> int | None:
        """Id of the backbone's image placeholder."""
        return getattr(self.vlm_config, "image_token_id", getattr(self.vlm_config, "image_token_index", None))


def _is_new(name: str, value: Any) -> bool:
    """Tell whether code from before a field was known would read a checkpoint with this value of it wrongly."""
    return value != (READ_BY_GATE if name == "gate_inputs" else getattr(MMEmbR1Config, name))


def _refuse_typo(name: str) -> None:
    """Refuse a name that is nearly that of a field: other attributes are transformers' own, or another program's."""
    if name not in FIELDS and (hint := nearest_name(name, FIELDS, cutoff=0.85)):
        raise ValueError(f"{MMEmbR1Config.__name__} has no field {name!r}{hint}")


MMEmbR1Config.register_for_auto_class()
