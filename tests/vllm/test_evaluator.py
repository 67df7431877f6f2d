"""The evaluator on vLLM gives the scores of the one that runs transformers, and reads what prompts share once."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.evaluator import Trial, TrialError, load_evaluator
from mmemb_r1.training.selection.select import select_rationales
from mmemb_r1.training.selection.vllm_evaluator import VllmEvaluator
from mmemb_r1.training.selection.vlm_evaluator import VLMEvaluator
from mmemb_r1.training.vllm_chat import VllmChat

TOLERANCE = {"atol": 1e-3, "rtol": 0}
RATIONALES = [
    None,
    "It is red.",
    "It may well be blue, or some other color, who knows.",
    "",
    "A <|im_end|> is no end.",
]


def noise(seed, size=(64, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


TRIALS = [
    Trial("query", {"image": [noise(0)], "text": "color?"}, [{"text": "red"}, {"text": "light blue"}], RATIONALES),
    Trial("target", {"image": [noise(1, (96, 64)), noise(2)]}, [{"text": "blue"}], RATIONALES[:2]),
    Trial("query", {"text": "red"}, [{"image": [noise(3)]}, {"image": [noise(4)]}], RATIONALES[1:]),
    Trial("query", {"text": "long " * 40}, [{"text": "red"}, {"video": [noise(5), noise(6)]}], RATIONALES[:3]),
]


@pytest.fixture(scope="module")
def folder(vllm_folder):
    return str(vllm_folder)


@pytest.fixture(scope="module")
def fast(folder, chat_engine):
    evaluator = load_evaluator(
        folder, "vllm", prompt="evaluator-short", engine={**chat_engine, "disable_log_stats": False}
    )
    yield evaluator
    evaluator.close()


@pytest.fixture(scope="module")
def slow(folder):
    return VLMEvaluator(folder, prompt="evaluator-short", device="cpu")


def test_the_scores_are_those_of_transformers(fast, slow):
    expected = slow.match_logits(TRIALS)
    assert min(float(logits.std()) for logits in expected) > 0.05  # they depend on what is asked
    for logits, other in zip(fast.match_logits(TRIALS), expected, strict=True):
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, other, **TOLERANCE)


def test_company_does_not_matter(fast, monkeypatch):
    together = fast.match_logits(TRIALS)
    monkeypatch.setattr(fast, "batch_size", 2)
    for trial, logits, parted in zip(TRIALS, together, fast.match_logits(TRIALS), strict=True):
        torch.testing.assert_close(parted, logits, **TOLERANCE)
        torch.testing.assert_close(fast.match_logits([trial])[0], logits, **TOLERANCE)
    assert fast.match_logits([]) == []


def test_what_prompts_share_is_computed_once(fast):
    """Of one pair with eight rationales and none, all but the last block of the common beginning is read once."""

    def counted():
        values = {one.name: one.value for one in fast._chat.llm.get_metrics() if hasattr(one, "value")}
        return np.array([values["vllm:prefix_cache_queries"], values["vllm:prefix_cache_hits"]])

    rationales = [None, *(f"Number {place} of eight." for place in range(8))]
    trial = Trial("query", {"text": "never asked before " * 12}, [{"text": "no"}], rationales)
    before = counted()
    fast.match_logits([trial])
    asked, found = counted() - before
    (head,) = fast._heads([trial], [(0, 0)])
    suffixes = [fast._renderer.suffix(rationale, "query") for rationale in rationales]
    assert asked == sum(len(head.token_ids) + len(suffix) for suffix in suffixes)
    assert found >= 8 * (len(head.token_ids) // 32) * 32
    assert asked - found < asked / 3


def test_the_definition_is_that_of_the_answers(fast, slow, folder, chat_engine):
    kinds = ("kind", "weights", "engine")
    common = {name: value for name, value in fast.definition.items() if name not in kinds}
    assert common == {name: value for name, value in slow.definition.items() if name not in kinds}
    assert fast.definition["kind"] == "vllm" and len(fast.definition["weights"]) == 32
    assert "block_size" not in fast.definition["engine"] and fast.definition["engine"]["max_model_len"] == 1024
    assert fast.context_length == 1024
    assert fast.reading.measure_input({"text": "a b c"}) == slow.reading.measure_input({"text": "a b c"})


def test_what_can_not_be_asked_is_an_error_of_its_trial(fast, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Trial("target", {"image": str(tmp_path / "broken.png")}, [{"text": "red"}], [None])
    with pytest.raises(TrialError, match="Trial 1 can't be answered: of its target, .*can't be read"):
        fast.match_logits([TRIALS[1], broken])
    long = Trial("query", {"text": "far too long " * 300}, [{"text": "red"}], [None, "x"])
    with pytest.raises(TrialError, match="Trial 2 can't be answered: vLLM does not take it: .*maximum context length"):
        fast.match_logits([*TRIALS[:2], long, TRIALS[2]])
    many = Trial("query", {"image": [noise(0)] * 5}, [{"text": "red"}], [None])
    with pytest.raises(TrialError, match="Trial 0 can't be answered: vLLM does not take it: At most 4 image"):
        fast.match_logits([many])
    # what was refused leaves nothing behind
    torch.testing.assert_close(fast.match_logits(TRIALS[:1])[0], fast.match_logits(TRIALS)[0], **TOLERANCE)


def test_a_selection_is_the_same_with_transformers_with_vllm_and_stopped_early(fast, slow, tmp_path):
    from mmemb_r1.training.selection.early_stop import EarlyStop

    pairs = Dataset.from_list(
        [
            {"pair_id": f"p{place}", "query": {"text": f"Which is {place}?"}, "target": {"text": f"The {place}th."}}
            for place in range(6)
        ]
    )
    rationales = Dataset.from_list(
        [
            {
                "pair_id": f"p{place}", "side": side, "worker": "w", "sample": sample, "seed": sample,
                "text": f"{word} {place}, the {side}.", "num_tokens": 5, "finish_reason": "stop", "error": None,
            }
            for place in range(6)
            for side in ("query", "target")
            for sample, word in enumerate(("It is", "Not", "Seems like", "Let me think of"))
        ]
    )  # fmt: skip
    options = SelectionOptions(num_negatives=2, space="log-odds")
    tables = {}
    for name, evaluator in (("slow", slow), ("fast", fast), ("early", EarlyStop(fast))):
        select_rationales(pairs, rationales, evaluator, tmp_path / name, options, progress=False)
        tables[name] = pq.read_table(tmp_path / name / "candidates.parquet").to_pandas()
    for column in ("confidence_with", "confidence_without", "gain"):
        np.testing.assert_allclose(tables["fast"][column], tables["slow"][column], atol=1e-3, rtol=0)
    clear = tables["slow"]["gain"].abs() > 1e-3  # of the others, rounding decides
    assert clear.sum() > 40
    assert (tables["fast"]["kept"] == tables["slow"]["kept"])[clear].all()
    assert 0 < tables["fast"]["kept"].sum() < len(clear)
    for column in ("kept", "reason"):
        assert tables["early"][column].equals(tables["fast"][column])
    np.testing.assert_allclose(tables["early"]["posterior"], tables["fast"]["posterior"], atol=1e-3, rtol=0)


def test_pictures_may_be_made_smaller(folder, chat_engine):
    large = Trial("query", {"image": [noise(7, (128, 128))]}, [{"text": "red"}], RATIONALES[:2])
    slow = VLMEvaluator(folder, prompt="evaluator-short", device="cpu", max_image_tokens=1, max_text_tokens=3)
    fast = VllmEvaluator(folder, prompt="evaluator-short", engine=chat_engine, max_image_tokens=1, max_text_tokens=3)
    try:
        for logits, expected in zip(
            fast.match_logits([large, *TRIALS]), slow.match_logits([large, *TRIALS]), strict=True
        ):
            torch.testing.assert_close(logits, expected, **TOLERANCE)
    finally:
        fast.close()


def test_a_picture_of_a_refused_prompt_is_read_all_the_same(folder, chat_engine):
    """vLLM would take it for sent: neither the next prompt nor one that waits already may miss it."""
    from vllm import SamplingParams

    chat = VllmChat(folder, engine={**chat_engine, "max_model_len": 512})
    try:
        (conversation,) = to_conversations([{"image": noise(8), "text": "red"}])
        prompt = chat.prompt(conversation)
        long = prompt.then([7] * (511 - len(prompt.token_ids)))  # with the picture's tokens, too long
        params = [SamplingParams(temperature=0.0, max_tokens=1) for _ in range(5)]
        first, refused, *answers = chat.generate([prompt, long, prompt, prompt], params[:4])
        assert "does not take it" in refused and "512" in refused
        tokens = [answer.outputs[0].token_ids for answer in (first, *answers, *chat.generate([prompt], params[4:]))]
        assert len(tokens) == 4 and all(one == tokens[0] for one in tokens)
    finally:
        chat.close()
