"""Another model thinks while an engine runs the backbone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from tests.engines.torch_engine import REFUSED, TorchEngine

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.thinker import Thought

INPUTS = ["Lima", {"image": Image.new("RGB", (64, 64), "red"), "text": "which flag?"}, "Oslo"]


class Says:
    definition: ClassVar[dict[str, str]] = {"kind": "says"}

    def think(self, inputs, max_tokens):
        return ((number, Thought("so red")) for number, _ in enumerate(inputs))


@pytest.mark.parametrize("form", ["text", "tokens"])
def test_an_engine_reads_a_thinkers_rationale(thinking, form):
    local = thinking(max_reasoning_tokens=12)
    local.set_thinker(Says(), form)
    model, engine = MMEmbR1.from_model(local[0].model, local.processor), TorchEngine(local)
    model.engine = engine
    model.set_thinker(Says(), form)
    expected, found = (one.explain(INPUTS, reasoning="always", batch_size=2) for one in (local, model))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.pop("embedding"), theirs.pop("embedding"), atol=2e-5)
        assert ours.pop("gate_prob") == pytest.approx(theirs.pop("gate_prob"), abs=1e-5)
        assert ours == theirs and ours["rationale"] == "so red"
    assert {kind for kind, _ in engine.asked} == {"states"}  # it writes nothing

    with pytest.raises(InputError, match="it is refused") as error:
        model.encode([*INPUTS, REFUSED], reasoning="always")
    assert error.value.index == 3
