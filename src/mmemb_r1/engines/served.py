"""Hold a model without its backbone, which an engine runs: the processor, the config, the head and the gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoProcessor

import mmemb_r1
from mmemb_r1.fingerprint import checkpoint_fingerprint, weights_digest
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs, norm_scale
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.decoding_mmemb_r1 import prefill
from mmemb_r1.modeling.loading_mmemb_r1 import loading
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model, check_finite
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module
from mmemb_r1.runs import read_json, write_json

FOLDER = "mmemb_r1"  # of an exported folder, beside the plain backbone
FACTS = "export.json"
HEADS = "heads.safetensors"
FORMAT = 1
NORM_SCALE = "norm_scale"
WORD_SHARES = "word_shares"
HEAD_PARTS = ("gate", "embedding_head")
PROBE = "What is the capital of France?"
PROBED_TOKENS = 16
_WORDS_AT_ONCE = 4096


class StoredRMSNorm(nn.Module):
    """Scale each dimension as the backbone's last norm does."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        return states * self.weight


class ServedBackbone(nn.Module):
    """Stand in the place of a backbone that runs elsewhere."""

    def __init__(self, config: Any, scale: Tensor | None, shares: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.words = None if shares is None else nn.Embedding.from_pretrained(shares)
        self.norm = None if scale is None else StoredRMSNorm(scale)

    def get_decoder(self) -> nn.Module:
        """Get the part that ends in the last norm: this one."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Get what is known of the words: their shares of what the gate makes of them, see [`word_shares`]."""
        if self.words is None:
            raise _elsewhere()
        return self.words

    @property
    def base_model(self) -> NoReturn:
        raise _elsewhere()

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _elsewhere()


def _elsewhere() -> RuntimeError:
    return RuntimeError(
        "This model was loaded without its backbone, which an engine runs: encode, explain and encode_stream work, as "
        "long as model.engine is set. For everything else (training, saving, plain calls) load the checkpoint that it "
        "was exported from."
    )


class ServedModule(MMEmbR1Module):
    """The only module of a model whose backbone an engine runs; see [`MMEmbR1Module`]."""

    stands_for = MMEmbR1Module  # in the checkpoint's fingerprint
    facts: dict[str, Any]  # what the exported folder says, see [`save_served`]

    @property
    def stored_weights_digest(self) -> str:
        """Get the digest of the weights that it was exported from."""
        return self.facts["weights"]

    def embed_batches(self, batches: Iterable[dict[str, Any]], **options: Any) -> Iterator[dict[str, Any]]:
        raise _elsewhere()

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        raise _elsewhere()

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        raise _elsewhere()

    @classmethod
    def load(  # type: ignore[override]  # nothing of it is on the Hub, or in another precision
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> ServedModule:
        """
        Load what [`save_served`] wrote; called by sentence-transformers.

        Raises:
            ValueError: if the folder was written by a newer version, or a file is missing or damaged.
        """
        folder = Path(model_name_or_path, subfolder)
        facts = export_facts(folder.parent)
        with loading(str(folder)):
            config = MMEmbR1Config.from_pretrained(folder, **(kwargs.get("config_kwargs") or {}))
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            tensors = load_file(folder / HEADS)
        scale, shares = tensors.pop(NORM_SCALE, None), tensors.pop(WORD_SHARES, None)
        with torch.device("meta"):
            model = MMEmbR1Model(config)
            if shares is not None:
                width, size = tensors[f"gate.{model.gate.first}.weight"].shape
                setattr(model.gate, model.gate.first, nn.Linear(size, width))
        model.vlm = ServedBackbone(config.vlm_config, scale, shares)
        for name in HEAD_PARTS:
            own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            getattr(model, name).load_state_dict(own, assign=True)
        check_finite(model)
        module = cls(model.eval(), processor)
        module.facts = facts
        return module


def save_served(model: Any, folder: Path, revision: str | None = None) -> dict[str, Any]:
    """
    Write a model without its backbone: what `MMEmbR1(..., engine=...)` loads of an exported folder.

    Args:
        model: the [`MMEmbR1`], in memory as a whole.
        folder: the exported folder; a new one, `FOLDER`, is made in it.
        revision: of the Hub, where the checkpoint is from there.

    Returns:
        What is written into `FACTS`: `format`, `version` (of this package), `fingerprint` and `weights` (digests of
        the checkpoint and of its weights), `max_image_tokens`, `revision`, and `probe`, see [`probe_of`].

    Raises:
        ValueError: if other modules follow the first one.
    """
    if len(model) > 1:
        raise ValueError(
            f"The checkpoint has a module {type(model[1]).__name__} after the adaptive one, which an engine's client "
            "does not run; take it off, and export the rest."
        )
    module, inner, made = model[0], model[0].model, folder / FOLDER
    made.mkdir(parents=True)
    inner.config.to_json_file(made / "config.json")
    module.processor.save_pretrained(made)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name in HEAD_PARTS
        for key, value in getattr(inner, name).state_dict().items()
    }
    if inner.config.gate_reads_words:
        first = f"gate.{inner.gate.first}.weight"
        tensors[WORD_SHARES], tensors[first] = word_shares(inner, tensors[first])
    if inner.config.embed_state == "unnormed":
        tensors[NORM_SCALE] = norm_scale(inner.vlm).detach().cpu().float()
    save_file(tensors, made / HEADS)
    write_json(made / "config_sentence_transformers.json", model._get_model_config())
    kind = f"{ServedModule.__module__}.{ServedModule.__name__}"
    write_json(made / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    facts = {
        "format": FORMAT,
        "version": mmemb_r1.__version__,
        "fingerprint": checkpoint_fingerprint(module),
        "weights": weights_digest(module),
        "max_image_tokens": inner.config.max_image_tokens,
        "revision": revision,
        "probe": probe_of(module),
    }
    write_json(made / FACTS, facts)
    return facts


@torch.no_grad()
def word_shares(model: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    """
    Part what a gate's first layer makes of the words into what each word adds: a table of a few numbers per word takes
    the place of the word embeddings, which are the backbone's.

    Args:
        model: the [`MMEmbR1Model`], whose gate reads words, after the state if it reads that, too.
        weight: `(O, G)` of the first layer.

    Returns:
        The table `(V, O)` float32; and the layer's weight for its means in the words' place, `(O, G - H + O)`.
    """
    size, words = model.config.hidden_size, model.get_input_embeddings()
    ids = torch.arange(words.weight.shape[0], device=words.weight.device)
    read = weight[:, -size:].float().to(ids.device)  # (O, H)
    shares = torch.cat([words(some).float() @ read.T for some in ids.split(_WORDS_AT_ONCE)])
    return shares.cpu(), torch.cat([weight[:, :-size], torch.eye(len(weight), dtype=weight.dtype)], dim=1)


@torch.inference_mode()
def probe_of(module: MMEmbR1Module) -> dict[str, Any]:
    """
    Read a built-in text, so that a client can tell whether an engine runs the same model.

    Returns:
        `token_ids` of its prompt, the `state` `(H,)` at the end, and the ids of the rationale `after` it, the
        likeliest ones, up to `PROBED_TOKENS` of them.
    """
    batch = module.preprocess([PROBE])
    batch = {name: value.to(module.model.device) for name, value in batch.items()}
    read = prefill(module.model.vlm, module.model.embedding_head, **model_inputs(batch), keep_cache=False)
    written = module.model.embed(
        **model_inputs(batch), reasoning="always", max_reasoning_tokens=PROBED_TOKENS, max_reasoning_rounds=1
    )
    return {
        "token_ids": batch["input_ids"][0].tolist(),
        "state": read.hidden[0].float().cpu().tolist(),
        "after": [token for token in cast(Tensor, written.rationale_ids)[0].tolist() if token >= 0],
    }


def is_exported(folder: str | Path) -> bool:
    """Tell whether a folder was written by `mmemb-r1 export vllm`."""
    return Path(folder, FOLDER, FACTS).is_file()


def export_facts(folder: str | Path) -> dict[str, Any]:
    """
    Read what an exported folder says of the checkpoint, see [`save_served`].

    Raises:
        ValueError: if it says nothing, or a newer version wrote it.
    """
    path = Path(folder, FOLDER, FACTS)
    if not path.is_file():
        raise ValueError(
            f"{folder} was not written by `mmemb-r1 export vllm MODEL DIR`: it has no {FOLDER}/{FACTS}. Export the "
            "checkpoint, and name that folder."
        )
    facts = read_json(path)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {facts.get('format')!r}, and this version of mmemb-r1 reads {FORMAT}. Upgrade "
            "with pip install -U mmemb-r1, or export the checkpoint again."
        )
    return facts
