"""The adaptive embedding model: embed, decide, think, embed again."""

from __future__ import annotations

from dataclasses import dataclass
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
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_mmemb_r1 import MMEmbR1Config, check_reasoning_options
from .decoding_mmemb_r1 import Sampling, Thoughts, left_padded, prefill, rotary_positions, think, without_suppressed
from .heads_mmemb_r1 import EmbeddingHead, ReasoningGate
from .pipeline_mmemb_r1 import MMEmbR1Pipeline  # noqa: F401 - the files that this one imports are saved with a model
from .tokens_mmemb_r1 import add_control_tokens, initialise_new_rows

OLD_NAMES = {"^head\\.": "embedding_head."}  # of weights, in checkpoints of 0.1.0.dev0


@dataclass
class MMEmbR1Output(ModelOutput):
    """
    Result of one forward pass over complete sequences. `K` is the largest number of `<|embed|>` in a row.

    Attributes:
        embeddings: `(B, K, D)`, one vector per `<|embed|>`: the direct one, then one per rationale. Slots that a row
            did not reach repeat its last one.
        path_mask: `(B, K)` bool, which of them exist.
        gate_logits: `(B, K)` logit of thinking (again) at each `<|embed|>`; filled up likewise.
        rationale_logps: `(N,)` log-probabilities of the labelled tokens, row by row; only with `labels`.
        rationale_entropies: `(N,)` entropies in nats of what they were drawn from, without gradient; only with
            `sampling_temperature`.
        last_hidden_state: `(B, S, H)`.
        hidden_states, attentions: those of the backbone's layers; only with `output_hidden_states=True` and
            `output_attentions=True`.
    """

    embeddings: Tensor | None = None
    path_mask: Tensor | None = None
    gate_logits: Tensor | None = None
    rationale_logps: Tensor | None = None
    rationale_entropies: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class MMEmbR1EmbedOutput(ModelOutput):
    """
    Result of [`MMEmbR1Model.embed`]; every tensor has the batch first.

    Attributes:
        embeddings: `(B, D)` float32, the last vector of each row.
        gate_prob: `(B,)` probability of thinking at the first `<|embed|>`.
        reasoned: `(B,)` bool, whether the row thought.
        num_reasoning_rounds: `(B,)` number of rationales.
        num_reasoning_tokens: `(B,)` rationale tokens of all rounds.
        num_forced_closings: `(B,)` rationales that were closed by force because their budget was spent.
        rationale_ids: `(B, T)` ids of the rationales, filled up with -1. Rounds are separated by the control tokens
            between them.
        all_embeddings: `(B, max_reasoning_rounds + 1, D)` (with `reasoning="never"`: `(B, 1, D)`), the vector after k
            rationales in slot k; slots that a row did not reach repeat its last one. Only with
            `output_all_embeddings=True`.
    """

    embeddings: Tensor | None = None
    gate_prob: Tensor | None = None
    reasoned: Tensor | None = None
    num_reasoning_rounds: Tensor | None = None
    num_reasoning_tokens: Tensor | None = None
    num_forced_closings: Tensor | None = None
    rationale_ids: Tensor | None = None
    all_embeddings: Tensor | None = None


class MMEmbR1Model(PreTrainedModel, GenerationMixin):
    """
    A vision-language model that embeds, and thinks first when its reasoning gate says so.

    Thinking only where it pays is the paper's; one prefill for both, and the decision as a token at `<|embed|>`, are
    ours.

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

    def __init__(self, config: MMEmbR1Config) -> None:
        super().__init__(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
        self.gate = ReasoningGate(config)
        self.embedding_head = EmbeddingHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.gate.output:  # not the gate itself: transformers asks for modules that own parameters only
            self.gate.reset()

    @classmethod
    def from_pretrained(cls, *args: Any, use_safetensors: bool | None = None, **kwargs: Any) -> MMEmbR1Model:
        """
        Load a checkpoint, see [`PreTrainedModel.from_pretrained`]; only from safetensors, which hold no code.

        Raises:
            ValueError: for `use_safetensors=False`.
            OSError: if the checkpoint holds no safetensors.
        """
        if use_safetensors is False:
            raise ValueError("mmemb-r1 reads safetensors only; leave use_safetensors out, and convert other weights.")
        kwargs["key_mapping"] = {**OLD_NAMES, **(kwargs.get("key_mapping") or {})}
        loaded = super().from_pretrained(*args, use_safetensors=True, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers would write the old names again
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [rule for rule in used if rule.target_patterns != list(OLD_NAMES.values())]
        return loaded

    @classmethod
    def from_vlm(
        cls, vlm: PreTrainedModel, processor: ProcessorMixin, **config: Any
    ) -> tuple[MMEmbR1Model, ProcessorMixin]:
        """
        Make an (untrained) embedding model of a vision-language model.

        Adds `<|embed|>`, `<think>` and `</think>` to the tokenizer (those it has already are used as they are), gives
        the new tokens the mean of the old embeddings plus a little noise, and makes the chat template end in
        `<|embed|>`.

        Args:
            vlm: the backbone; it becomes part of the new model and gets new embedding rows if it has too few.
            processor: its processor; changed in place.
            **config: fields of [`MMEmbR1Config`].

        Returns:
            The model, in the backbone's dtype and on its device, and the processor.

        Raises:
            ValueError: if the processor has no chat template or no tokenizer, or the config no such field.
        """
        unknown = [name for name in config if not hasattr(cls.config_class, name)]
        if unknown:
            raise ValueError(f"{cls.config_class.__name__} has no field {unknown[0]!r}.")
        tokens = add_control_tokens(processor)
        initialise_new_rows(vlm, len(processor.tokenizer), tokens.new_ids)
        configuration = cls.config_class(
            vlm_config=vlm.config,
            embed_token_id=tokens.embed,
            think_token_id=tokens.think,
            end_think_token_id=tokens.end_think,
            suppressed_token_ids=tokens.suppressed,
            rationale_vocab_size=len(processor.tokenizer),
            attn_implementation=vlm.config._attn_implementation,  # a composite config resets it otherwise
            **config,
        )
        with torch.device("meta"):  # a second backbone is neither built nor initialised
            model = cls(configuration)
        model.vlm = vlm
        model.gate, model.embedding_head = ReasoningGate(configuration), EmbeddingHead(configuration)
        for head in (model.gate, model.embedding_head):
            head.apply(model._init_weights).to(device=vlm.device, dtype=vlm.dtype)
        model.generation_config = vlm.generation_config
        return model.eval(), processor

    @property
    def base_model(self) -> nn.Module:
        """The backbone without its language-model head."""
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
        """Plain text generation of the backbone, without gate and embeddings."""
        # the saved one was loaded for the whole, not for this part
        self.vlm.generation_config = self.generation_config
        return self.vlm.generate(*args, **kwargs)

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
        markers = (input_ids == self.config.embed_token_id) & attention_mask.bool()  # (B, S)
        self._require_markers(markers.any(dim=1))
        number = markers.long().cumsum(dim=1)  # (B, S), how many markers so far
        embeddings, gate_logits = [], []
        for path in range(1, int(number[:, -1].max()) + 1):
            at = number.clamp(max=path).argmax(dim=1)  # (B,), the first column that has seen so many markers, or all
            upto = torch.arange(hidden.shape[1], device=hidden.device) <= at[:, None]  # (B, S)
            embeddings.append(self.embedding_head(self.embedding_head.pool(hidden, attention_mask.bool() & upto).mean))
            state = hidden[torch.arange(len(at), device=at.device), at]  # (B, H)
            gate_logits.append(self.gate(state.detach() if detach_gate else state))
        paths = torch.arange(1, len(embeddings) + 1, device=number.device)
        logps, entropies = (None, None) if labels is None else self._token_logps(hidden, labels, sampling_temperature)
        return MMEmbR1Output(
            embeddings=torch.stack(embeddings, dim=1),  # (B, K, D)
            path_mask=paths <= number[:, -1:],  # (B, K)
            gate_logits=torch.stack(gate_logits, dim=1),  # (B, K)
            rationale_logps=logps,
            rationale_entropies=entropies,
            last_hidden_state=hidden,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _token_logps(
        self, hidden: Tensor, labels: Tensor, temperature: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies `(N,)` of the labelled tokens; the vocabulary's head sees only these."""
        wanted = labels[:, 1:] != -100  # (B, S - 1): position i predicts token i + 1
        logits = self.vlm.get_output_embeddings()(hidden[:, :-1][wanted]).float()  # (N, V)
        entropies = None
        if temperature is not None:
            logits = without_suppressed(logits, self.config) / temperature
            entropies = torch.special.entr(logits.detach().softmax(dim=-1)).sum(dim=-1)  # (N, V) -> (N,)
        return -nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="none"), entropies

    def embed(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        reasoning: str | None = None,
        gate_threshold: float | None = None,
        max_reasoning_tokens: int | None = None,
        max_reasoning_rounds: int | None = None,
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
            max_reasoning_tokens: budget of one rationale. Default: the config's.
            max_reasoning_rounds: rationales per row at most. Default: the config's.
            sampling: how rationale tokens are chosen. Default: greedily.
            output_all_embeddings: also return the vector after each round.
            **media: whatever else the processor gave.

        Raises:
            ValueError: if a prompt does not end in `<|embed|>`, or an option is out of its range.
        """
        config = self.config
        reasoning = config.reasoning if reasoning is None else reasoning
        threshold = config.gate_threshold if gate_threshold is None else gate_threshold
        max_tokens = config.max_reasoning_tokens if max_reasoning_tokens is None else max_reasoning_tokens
        max_rounds = config.max_reasoning_rounds if max_reasoning_rounds is None else max_reasoning_rounds
        check_reasoning_options(reasoning, threshold, max_tokens, max_rounds)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        order = left_padded(attention_mask)
        if order is not None:
            # everything of the prompts' shape is per token and moves along; media is stored flat, in reading order
            media = {
                key: value.gather(1, order) if _per_token(value, order) else value for key, value in media.items()
            }
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
        self._require_markers((input_ids[:, -1] == config.embed_token_id) & attention_mask[:, -1].bool())

        # a token that was chosen has no gradient, so a vector after it would have a wrong one
        with torch.set_grad_enabled(torch.is_grad_enabled() and reasoning == "never"):
            context = prefill(self.vlm, self.embedding_head, input_ids, attention_mask, reasoning != "never", **media)
            direct = self.embedding_head(context.pooled.mean)
            gate_prob = self.gate(context.hidden).sigmoid()
            if reasoning == "always":
                rows = torch.arange(len(input_ids), device=input_ids.device)
            else:
                rows = ((gate_prob >= threshold) & (reasoning == "auto")).nonzero().squeeze(-1)
            slots = max_rounds + 1 if reasoning != "never" else 1
            zeros = torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
            thoughts = Thoughts(
                embeddings=direct[:, None].repeat(1, slots, 1),  # (B, K + 1, D)
                rounds=zeros,
                num_tokens=zeros.clone(),
                num_forced=zeros.clone(),
                token_ids=[[] for _ in range(len(input_ids))],
            )
            if len(rows):
                think(
                    self,
                    context,
                    thoughts,
                    rows,
                    decide=None if reasoning == "always" else lambda logits: logits.sigmoid() >= threshold,
                    max_tokens=max_tokens,
                    max_rounds=max_rounds,
                    sampling=sampling or Sampling(),
                )
        return MMEmbR1EmbedOutput(
            embeddings=thoughts.embeddings[:, -1],
            gate_prob=gate_prob,
            reasoned=thoughts.rounds > 0,
            num_reasoning_rounds=thoughts.rounds,
            num_reasoning_tokens=thoughts.num_tokens,
            num_forced_closings=thoughts.num_forced,
            rationale_ids=_padded(thoughts.token_ids, input_ids.device),
            all_embeddings=thoughts.embeddings if output_all_embeddings else None,
        )

    def _require_markers(self, present: Tensor) -> None:
        if not bool(present.all()):
            row = int((~present).nonzero()[0])
            raise ValueError(
                f"Row {row} does not hold `<|embed|>` (id {self.config.embed_token_id}) where an embedding is read. "
                "Render prompts with the chat template of the processor that is saved beside the model, and don't "
                "truncate them."
            )


def _per_token(value: Any, order: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == order.shape and not value.is_floating_point()


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    """Lists of ids -> `(B, T)`, filled up with -1."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long, device=device).reshape(
        len(rows), width
    )


MMEmbR1Model.register_for_auto_class("AutoModel")

if __name__.startswith("mmemb_r1."):  # the installed package: its classes are used without trust_remote_code
    AutoConfig.register(MMEmbR1Config.model_type, MMEmbR1Config, exist_ok=True)
    AutoModel.register(MMEmbR1Config, MMEmbR1Model, exist_ok=True)
