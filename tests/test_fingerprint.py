"""One checkpoint told from another by everything that a vector depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn

import mmemb_r1.fingerprint
from mmemb_r1 import MMEmbR1
from mmemb_r1.fingerprint import checkpoint_fingerprint, weights_digest
from mmemb_r1.tiny import build_tiny_vlm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> MMEmbR1:
    return MMEmbR1(str(tiny_checkpoint), device="cpu")


@pytest.fixture
def own(model: MMEmbR1) -> MMEmbR1:
    """One that may be changed."""
    return deepcopy(model)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of weights that were read, one entry per tensor."""
    read: list[int] = []

    class Counting:
        def __init__(self, **options: int) -> None:
            self.digest = blake2b(**options)

        def update(self, data) -> None:
            read.append(len(data))
            self.digest.update(data)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    blake2b = mmemb_r1.fingerprint.blake2b
    monkeypatch.setattr(
        mmemb_r1.fingerprint,
        "blake2b",
        lambda *data, **options: blake2b(*data, **options) if data else Counting(**options),
    )
    yield read


@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "smolvlm"])
def test_it_is_the_same_after_saving_and_loading(family, tmp_path):
    model = MMEmbR1.from_vlm(*build_tiny_vlm(family))
    model.encode(["a", "a longer text"], reasoning="never")  # which sets the tokenizer's padding
    model.save_pretrained(str(tmp_path / "model"))
    loaded = MMEmbR1(str(tmp_path / "model"), device="cpu")
    assert checkpoint_fingerprint(loaded[0]) == checkpoint_fingerprint(model[0])


def test_one_value_of_any_weight_changes_it(own):
    fingerprints = {checkpoint_fingerprint(own[0])}
    parameters = list(own[0].parameters())
    for parameter in parameters:
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        fingerprints.add(checkpoint_fingerprint(own[0]))
    assert len(fingerprints) == 1 + len(parameters)


CHANGES: dict[str, Callable[[MMEmbR1], object]] = {
    "config": lambda model: setattr(model[0].model.config, "truncate_dim", 8),
    "backbone's config": lambda model: setattr(model[0].model.config.vlm_config.text_config, "rms_norm_eps", 0.5),
    "longest text": lambda model: setattr(model, "max_seq_length", 5),
    "template": lambda model: setattr(model[0].processor, "chat_template", model[0].processor.chat_template + " "),
    "token": lambda model: model.tokenizer.add_tokens(["<new>"]),
    "pictures": lambda model: setattr(model[0].processor.image_processor, "image_mean", [0.1, 0.2, 0.3]),
    "videos": lambda model: setattr(model[0].processor.video_processor, "image_mean", [0.1, 0.2, 0.3]),
    "dtype": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_change_it(change, own):
    before = checkpoint_fingerprint(own[0])
    CHANGES[change](own)
    assert checkpoint_fingerprint(own[0]) != before


def test_where_it_came_from_does_not(own, tiny_checkpoint, tmp_path):
    before = checkpoint_fingerprint(own[0])
    own[0].model.config._name_or_path = str(tmp_path)
    own[0].model.config.vlm_config.transformers_version = "0.0"
    assert checkpoint_fingerprint(own[0]) == before


def test_bfloat16_and_scalars_are_read():
    class Odd(nn.Module):
        def __init__(self, last: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))
            self.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, last]], dtype=torch.bfloat16).T)
            self.empty = nn.Parameter(torch.empty(0, 3))

    assert weights_digest(Odd(4.0)) == weights_digest(Odd(4.0)) != weights_digest(Odd(5.0))


def test_shapes_and_names_count():
    def digest(name: str, *shape: int) -> str:
        return weights_digest(nn.ParameterDict({name: nn.Parameter(torch.zeros(shape))}))

    assert len({digest("a", 2, 3), digest("a", 3, 2), digest("a", 6), digest("b", 6), digest("a", 5)}) == 5


def test_saved_buffers_count_and_others_do_not():
    def digest(value: float, persistent: bool) -> str:
        module = nn.Linear(1, 1)
        nn.init.ones_(module.weight)
        nn.init.ones_(module.bias)
        module.register_buffer("scale", torch.tensor(value), persistent=persistent)
        return weights_digest(module)

    assert digest(1.0, True) != digest(2.0, True)
    assert digest(1.0, False) == digest(2.0, False)


def test_a_second_call_reads_no_weights(own, hashed):
    first = checkpoint_fingerprint(own[0])
    assert sum(hashed) > sum(parameter.nbytes for parameter in own[0].parameters())
    hashed.clear()
    assert checkpoint_fingerprint(own[0]) == first
    assert hashed == []
    with torch.no_grad():
        next(own[0].parameters()).add_(1)
    assert checkpoint_fingerprint(own[0]) != first
    assert hashed


def test_tied_weights_are_read_once(hashed):
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    weights_digest(nn.Sequential(first, second))
    apart = sum(hashed)
    hashed.clear()
    second.weight = first.weight
    weights_digest(nn.Sequential(first, second))
    assert sum(hashed) == apart / 2


def test_a_weight_that_took_anothers_place_is_read(own):
    module = nn.Linear(2, 2)
    before = weights_digest(module)
    version = module.weight._version
    module.weight = nn.Parameter(module.weight.detach().clone() + 1)
    assert module.weight._version <= version  # which says nothing
    assert weights_digest(module) != before


def test_weights_without_a_count_of_changes_are_read_each_time():
    with torch.inference_mode():
        module = nn.Linear(2, 2)
        before = weights_digest(module)
        module.weight.add_(1)
        assert weights_digest(module) != before


def test_weights_that_are_elsewhere_are_refused():
    with pytest.raises(ValueError, match="the weight 'weight' is not in memory .*load the model without offloading"):
        weights_digest(nn.Linear(2, 2, device="meta"))


def test_adapters_count_as_they_are_switched(own):
    before = checkpoint_fingerprint(own[0])
    own.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    on = checkpoint_fingerprint(own[0])
    own.disable_adapters()
    off = checkpoint_fingerprint(own[0])
    assert len({before, on, off}) == 3
    own.enable_adapters()
    assert checkpoint_fingerprint(own[0]) == on


def test_modules_after_the_model_count(model):
    alone, dense = checkpoint_fingerprint(model[0]), nn.Linear(2, 2)
    together = checkpoint_fingerprint(model[0], dense)
    assert len({alone, together, checkpoint_fingerprint(model[0], Normalize())}) == 3
    with torch.no_grad():
        dense.weight.add_(1)
    assert checkpoint_fingerprint(model[0], dense) != together
