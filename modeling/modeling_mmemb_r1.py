"""Run the adaptive embedding model: embed, ask the gate, think, embed again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import can_return_tuple

from .backbones_mmemb_r1 import last_norm, norm_scale, rotary_frequencies, rotary_positions
from .configuration_mmemb_r1 import MMEmbR1Config
from .decoding_mmemb_r1 import DecodingStatistics, Sampling, without_suppressed
from .files_mmemb_r1 import as_new, copy_content, remove_read_only
from .gate_inputs_mmemb_r1 import gate_inputs, mean_words
from .heads_mmemb_r1 import ReasoningGate, pooling_class
from .loading_mmemb_r1 import loading
from .options_mmemb_r1 import FIELDS, nearest_name
from .outputs_mmemb_r1 import MMEmbR1EmbedOutput, MMEmbR1Output
from .paths_mmemb_r1 import reading_places
from .pipeline_mmemb_r1 import MMEmbR1Pipeline  # noqa: F401 - the files that this one imports are saved with a model
from .scheduling_mmemb_r1 import ReasoningOptions, embed_batches
from .token_logps_mmemb_r1 import TOKENS_AT_ONCE, called_once, token_logps
from .tokens_mmemb_r1 import Controls, add_control_tokens, initialise_new_rows

OLD_NAMES = {"^head\\.": "embedding_head."}  # of weights, in checkpoints of 0.1.0.dev0


MODULES_FILE = "modules.json"
MODULE_REFERENCE = "sentence_mmemb_r1.MMEmbR1Module"


class MMEmbR1Model(PreTrainedModel, GenerationMixin):
    """
    Embed with a vision-language model, which thinks first when its reasoning gate says so.

    Thinking only where it pays is the paper's idea; one prefill for both embeddings, and a gate that reads the state
    at `<|embed|>`, are this project's.

    The backbone `vlm` is any `AutoModelForImageTextToText`; `gate` and `head` are small. Prompts come from the
    processor that is saved beside the model: its chat template ends each of them in `<|embed|>`.
    """

    config: MMEmbR1Config
    config_class = MMEmbR1Config
    base_model_prefix = "vlm"
    input_modalities = ("text", "image", "video")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    logits_at_once = TOKENS_AT_ONCE  # tokens whose logits a pass with `labels` holds at a time
    decode_compile_options: dict[str, Any] | None = None  # of `compile_decoding`

    def __init__(self, config: MMEmbR1Config) -> None:
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.gate = ReasoningGate(config)
        self.embedding_head = pooling_class(config.pooling)(config)
        if config.embed_state == "unnormed":
            last_norm(self.vlm)  # refuse a backbone whose norm can't be undone
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.gate.output:  # not the gate itself: transformers asks for modules that own parameters only
            self.gate.reset()

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = None, **kwargs: Any) -> Any:
        """
        Load a checkpoint, see [`PreTrainedModel.from_pretrained`]; only from safetensors, which hold no code.

        A checkpoint that does not fit is refused, where transformers would go on with random weights. Who asks for
        `output_loading_info` is told instead, and `ignore_mismatched_sizes` allows weights of another shape.

        Raises:
            ValueError: for `use_safetensors=False`; if weights are missing, not known, of another shape, or no
                numbers; if the checkpoint's index names other files than safetensors.
            OSError: if the checkpoint holds no safetensors.
        """
        if use_safetensors is False:
            raise ValueError("mmemb-r1 reads safetensors only; leave use_safetensors out, and convert other weights.")
        kwargs["key_mapping"] = {**OLD_NAMES, **(kwargs.get("key_mapping") or {})}
        told, other_shapes = (kwargs.pop(name, False) for name in ("output_loading_info", "ignore_mismatched_sizes"))
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        with loading(args[0] if args else kwargs.get("pretrained_model_name_or_path")):
            model, info = super().from_pretrained(*args, **kwargs)
        if not other_shapes:
            shapes = [f"{name} {tuple(there)}, not {tuple(here)}" for name, there, here in info["mismatched_keys"]]
            _refuse_weights("are of another shape", shapes)
        if not told:
            _refuse_weights("are missing", info["missing_keys"])
            _refuse_weights("belong to no part of the model", info["unexpected_keys"])
        check_finite(model)
        # transformers would write the old names again
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [rule for rule in used if rule.target_patterns != list(OLD_NAMES.values())]
        return (model, info) if told else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """
        Save the model, see [`PreTrainedModel.save_pretrained`], with what sentence-transformers loads it by, and such
        that who may read new files may read all of it.
        """
        folder = Path(save_directory)
        if is_main_process:
            remove_read_only(folder.glob("*_mmemb_r1.py"))  # transformers writes some of them
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_modules(save_directory)
            as_new(folder.glob("*.safetensors"))

    @classmethod
    def _load_pretrained_model(
        cls, model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any
    ) -> Any:
        for file in checkpoint_files or ():
            if not str(file).endswith(".safetensors"):
                raise ValueError(
                    f"The checkpoint's index names {file}, which is no safetensors file and could hold code; mmemb-r1 "
                    "reads safetensors only. Convert it, and name the new file in the index."
                )
        return super()._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    @classmethod
    def from_vlm(
        cls,
        vlm: PreTrainedModel,
        processor: ProcessorMixin,
        controls: Controls | None = None,
        template: str | None = None,
        **config: Any,
    ) -> tuple[MMEmbR1Model, ProcessorMixin]:
        """
        Make an embedding model of a vision-language model, untrained or, with other controls, with the vectors that it
        gives already.

        Adds `<|embed|>`, `<think>` and `</think>` to the tokenizer (those it has already are used as they are), gives
        the new tokens the mean of the old embeddings plus a little noise, and makes the chat template end in
        `<|embed|>`.

        Args:
            vlm: the backbone; it becomes part of the new model and gets new embedding rows if it has too few.
            processor: its processor; changed in place.
            controls: other tokens in the places of these three, see [`Controls`].
            template: the chat template of prompts to embed, which ends in the marker. Default: the processor's, and
                the marker.
            **config: fields of [`MMEmbR1Config`].

        Returns:
            The model, in the backbone's dtype and on its device, and the processor.

        Raises:
            ValueError: if the processor has no chat template or no tokenizer, or the config no such field.
        """
        for name in config:
            if not hasattr(cls.config_class, name):
                raise ValueError(f"{cls.config_class.__name__} has no field {name!r}{nearest_name(name, FIELDS)}")
        if config.get("embed_state") == "unnormed":
            last_norm(vlm)  # likewise, before anything is changed
        tokens = add_control_tokens(processor, controls, template)
        initialise_new_rows(vlm, len(processor.tokenizer), tokens.new_ids)
        configuration = cls.config_class(
            vlm_config=vlm.config,
            **tokens.fields,
            attn_implementation=vlm.config._attn_implementation,  # a composite config resets it otherwise
            **config,
        )
        with torch.device("meta"):  # a second backbone is neither built nor initialised
            model = cls(configuration)
        model.vlm = vlm
        model.gate = ReasoningGate(configuration)
        model.embedding_head = pooling_class(configuration.pooling)(configuration)
        for head in (model.gate, model.embedding_head):
            head.apply(model._init_weights).to(device=vlm.device, dtype=vlm.dtype)
        model.generation_config = vlm.generation_config
        return model.eval(), processor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MMEmbR1Model:
        """
        Move or cast the model: `half()`, `bfloat16()`, `to(...)`.

        As where a checkpoint is loaded in that dtype, frequencies of rotary positions keep theirs: rounded ones turn
        tokens that are far from the beginning by quite other angles.
        """
        before = rotary_frequencies(self)
        super()._apply(fn, recurse)
        for part, name, frequencies in before:
            moved = getattr(part, name)
            if moved.dtype != frequencies.dtype:
                setattr(part, name, frequencies.to(moved.device))
        return self

    @property
    def base_model(self) -> nn.Module:
        """Get the backbone without its language-model head."""
        return self.vlm.base_model

    def get_input_embeddings(self) -> nn.Module:
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.vlm.set_output_embeddings(new_embeddings)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate plain text with the backbone, without gate and embeddings."""
        # the saved one was loaded for the whole, not for this part
        self.vlm.generation_config = self.generation_config
        return self.vlm.generate(*args, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Choose what computes attention, see [`PreTrainedModel.set_attn_implementation`]."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        # transformers 5.19 names no parts of a part, and leaves them marked so that it passes over them the next time
        for part in self.modules():
            if isinstance(part, PreTrainedModel):
                vars(part.config).pop("_attn_was_changed", None)
        chosen = attn_implementation.get("vlm_config") if isinstance(attn_implementation, dict) else None
        if chosen is not None:
            self.vlm.set_attn_implementation(chosen, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        detach_gate: bool = False,
        sampling_temperature: float | None = None,
        **media: Any,
    ) -> MMEmbR1Output:
        """
        Run complete sequences, `prompt <|embed|>` or `prompt <|embed|> <think> r </think> <|embed|>`, in one pass.

        Args:
            input_ids: `(B, S)` token ids.
            attention_mask: `(B, S)`; padding may be on either side. Default: no padding.
            labels: `(B, S)` ids whose log-probability is wanted, -100 elsewhere. Logits are computed only there.
            detach_gate: whether a loss on the gate's logits leaves everything but the gate alone.
            sampling_temperature: take the log-probabilities of what rationales are drawn from at this temperature: ids
                that can't occur in a rationale have none. Default: those of the whole vocabulary.
            **media: whatever else the processor gave.

        Raises:
            ValueError: if a row holds no `<|embed|>`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        position_ids, _ = rotary_positions(self.vlm, input_ids, attention_mask, media)
        output = self.vlm.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
            **media,
        )
        hidden = output.last_hidden_state
        markers = reading_places(self.config, input_ids, attention_mask)  # (B, S)
        self.require_markers(markers.any(dim=1))
        number = markers.long().cumsum(dim=1)  # (B, S), how many markers so far
        pooled = attention_mask.bool()
        if self.config.embed_position == "before":
            pooled = pooled & ~markers
        words = None
        if self.config.gate_reads_words:
            words = mean_words(self.vlm, input_ids, attention_mask.bool() & (number == 0))
        embeddings, read = [], []
        for path in range(1, int(number[:, -1].max()) + 1):
            at = number.clamp(max=path).argmax(dim=1)  # (B,), the first column that has seen so many markers, or all
            upto = torch.arange(hidden.shape[1], device=hidden.device) <= at[:, None]  # (B, S)
            embeddings.append(self.embeddings_of(self.embedding_head.pool(hidden, pooled & upto).mean))
            state = hidden[torch.arange(len(at), device=at.device), at]  # (B, H)
            read.append(gate_inputs(self.config, state.detach() if detach_gate else state, words))
        paths = torch.arange(1, len(embeddings) + 1, device=number.device)
        inputs = torch.stack(read, dim=1)  # (B, K, G)
        logps, entropies = (None, None) if labels is None else self._token_logps(hidden, labels, sampling_temperature)
        return MMEmbR1Output(
            embeddings=torch.stack(embeddings, dim=1),  # (B, K, D)
            path_mask=paths <= number[:, -1:],  # (B, K)
            gate_logits=self.gate(inputs),  # (B, K)
            gate_inputs=inputs.detach(),
            rationale_logps=logps,
            rationale_entropies=entropies,
            last_hidden_state=hidden,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def ask_gate(self, state: Tensor, words: Tensor | None = None) -> Tensor:
        """
        Ask the gate whether to think: logits `(...)`, in float32.

        Args:
            state: `(..., H)` hidden state at the marker.
            words: `(..., H)` mean word embedding of the prompt, which [`prefill`] gives where the gate reads it.
        """
        return self.gate(gate_inputs(self.config, state, words))

    def embeddings_of(self, pooled: Tensor, whole: bool = False) -> Tensor:
        """Turn pooled states `(..., H)` into embeddings `(..., D)`, in float32; `whole` ones are not truncated."""
        if self.config.embed_state == "unnormed":
            pooled = pooled / norm_scale(self.vlm)
        return self.embedding_head(pooled, whole)

    def _token_logps(
        self, hidden: Tensor, labels: Tensor, temperature: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute log-probabilities and entropies `(N,)` of the labelled tokens; only these get logits, in chunks."""
        wanted = labels[:, 1:] != -100  # (B, S - 1): position i predicts token i + 1
        head = self.vlm.get_output_embeddings()
        forward = head.forward

        def logits_of(states: Tensor) -> Tensor:
            logits = forward(states).float()  # (n, V)
            return logits if temperature is None else without_suppressed(logits, self.config) / temperature

        def of_all(states: Tensor) -> tuple[Tensor, Tensor | None]:
            ids, with_entropies = labels[:, 1:][wanted], temperature is not None
            return token_logps(states, ids, logits_of, with_entropies, self.logits_at_once)

        return called_once(head, of_all, hidden[:, :-1][wanted])

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reasoning: str | None = None,
        gate_threshold: float | None = None,
        max_reasoning_tokens: int | Sequence[int] | None = None,
        max_reasoning_rounds: int | None = None,
        second_look: bool | None = None,
        decode_batch_size: int | None = None,
        sampling: Sampling | None = None,
        output_all_embeddings: bool = False,
        **media: Any,
    ) -> MMEmbR1EmbedOutput:
        """
        Embed a batch of prompts, each ending in `<|embed|>`, thinking first where that is wanted.

        One prefill gives the direct embedding and the gate's decision. Only the rows that think are decoded, from the
        same key-value cache. Gradients flow with `reasoning="never"` only.

        Args:
            input_ids: `(B, S)` token ids; padding may be on either side.
            attention_mask: `(B, S)`. Default: no padding.
            reasoning: `"auto"` (the gate decides), `"always"` or `"never"`. Default: the config's.
            gate_threshold: gate probability from which a row thinks. Default: the config's.
            max_reasoning_tokens: budget of one rationale, for all rows or for each. Default: the config's.
            max_reasoning_rounds: rationales per row at most. Default: the config's.
            second_look: whether the vector of a row that thought is mixed with its direct one, by how much the model
                believes its rationale. Default: whether the config has weights for it.
            decode_batch_size: rows that think at the same time. Default: all.
            sampling: how rationale tokens are chosen. Default: greedily.
            output_all_embeddings: also return the vector after each round.
            **media: whatever else the processor gave.

        Raises:
            ValueError: if a prompt does not end in `<|embed|>`, or an option is out of its range.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **media}
        given = reasoning, gate_threshold, max_reasoning_tokens, max_reasoning_rounds, second_look
        options = ReasoningOptions.of(self.config, sampling, *given)
        return next(embed_batches(self, [batch], options, decode_batch_size, output_all_embeddings, several=False))

    def embed_batches(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        reasoning: str | None = None,
        gate_threshold: float | None = None,
        max_reasoning_tokens: int | None = None,
        max_reasoning_rounds: int | None = None,
        second_look: bool | None = None,
        decode_batch_size: int | None = None,
        sampling: Sampling | None = None,
        output_all_embeddings: bool = False,
        statistics: DecodingStatistics | None = None,
    ) -> Iterator[MMEmbR1EmbedOutput]:
        """
        Embed many batches as [`embed`] does: rows of several of them think together, so that decoding has full batches
        however few rows of each think. A row's result is the same as alone, up to rounding. The other arguments are
        those of [`embed`].

        Args:
            batches: what the processor gave for each, and `max_reasoning_tokens` where a batch, or each row of it, has
                a budget of its own; read one by one, and one ahead of the room for more rows that think.
            decode_batch_size: rows that think at the same time. Default: all that do, of all batches.
            statistics: where to count what decoding cost.

        Yields:
            One output per batch, in order.

        Raises:
            ValueError: as [`embed`].
        """
        given = reasoning, gate_threshold, max_reasoning_tokens, max_reasoning_rounds, second_look
        options = ReasoningOptions.of(self.config, sampling, *given)
        return embed_batches(self, batches, options, decode_batch_size, output_all_embeddings, statistics)

    def compile_decoding(self, **options: Any) -> None:
        """
        Run decode steps through `torch.compile` from now on. The first calls take a minute; results stay the same up
        to rounding. It is worth its while where launching kernels takes longer than running them, on a GPU with small
        batches; on a CPU it is not.

        Args:
            **options: of `torch.compile`. Default: `dynamic=True`, so that nothing is compiled anew when rows leave
                and sequences grow.

        Raises:
            ValueError: if the model is spread over devices.
        """
        if "forward" in vars(self.vlm.base_model):
            raise ValueError(
                "This model was spread over devices (device_map), which can't be compiled as one; load it on one "
                "device, or don't compile."
            )
        self.decode_compile_options = {"dynamic": True, **options}

    def require_markers(self, present: Tensor) -> None:
        """Raise a ValueError unless `present` `(B,)` is true for each row."""
        if not bool(present.all()):
            row = int((~present).nonzero()[0])
            raise ValueError(
                f"Row {row} does not hold `<|embed|>` (id {self.config.embed_token_id}) where an embedding is read. "
                "Render prompts with the chat template of the processor that is saved beside the model, and don't "
                "truncate them."
            )


def check_finite(model: nn.Module) -> None:
    """
    Refuse weights that are no numbers.

    Raises:
        ValueError: that names them.
    """
    loaded = [
        (name, weight)
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and weight.itemsize > 1 and weight.numel() and not weight.is_meta
    ]
    _refuse_weights("hold NaN or infinity", [name for name, weight in loaded if not _is_finite(weight.detach())])


def _is_finite(weight: Tensor) -> bool:
    return bool(torch.stack(weight.aminmax()).isfinite().all())  # which is NaN if any is; nothing is copied for it


def _refuse_weights(what: str, names: Iterable[str]) -> None:
    if names := sorted(names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"The checkpoint does not fit its config: of its weights these {what}: {', '.join(names[:3])}{more}. "
            "Load it with the config it was saved with, or get its files again."
        )


def write_modules(folder: str | os.PathLike[str]) -> None:
    """
    Write what tells sentence-transformers how a folder's weights, or adapters, are loaded. Without it, it would take
    the mean of the backbone's states without a word.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE_REFERENCE}]
    Path(folder, MODULES_FILE).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for source in Path(__file__).parent.glob("*_mmemb_r1.py"):
        if not Path(folder, source.name).exists():
            copy_content(source, Path(folder, source.name))


MMEmbR1Model.register_for_auto_class("AutoModel")

if __name__.startswith("mmemb_r1."):  # the installed package: its classes are used without trust_remote_code
    AutoConfig.register(MMEmbR1Config.model_type, MMEmbR1Config, exist_ok=True)
    AutoModel.register(MMEmbR1Config, MMEmbR1Model, exist_ok=True)
