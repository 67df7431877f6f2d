from __future__ import annotations

import pytest
import torch

from mmemb_r1.training.joint_collator import IGNORED, JointCollator, append_suffixes
from mmemb_r1.training.joint_trainer import forward_side


@pytest.fixture
def collator(tiny):
    return JointCollator(tiny[1], tiny[0].config)


def test_suffixes_follow_the_prompt_without_gaps_and_only_the_rationale_is_labelled():
    batch = {
        "input_ids": torch.tensor([[0, 5, 9], [6, 7, 9]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0], [0, 1, 0]]),
        "pixel_values": torch.ones(7, 2),
    }
    result = append_suffixes(batch, [[20, 31, 32, 21, 9], []], pad_token_id=3)
    assert result["input_ids"].tolist() == [[5, 9, 20, 31, 32, 21, 9], [6, 7, 9, 3, 3, 3, 3]]
    assert result["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert result["mm_token_type_ids"].tolist() == [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert result["labels"].tolist() == [[IGNORED] * 3 + [31, 32, 21, IGNORED], [IGNORED] * 7]
    assert result["pixel_values"] is batch["pixel_values"]


def test_each_row_holds_one_marker_or_two(collator, tiny, rows):
    batch = collator(rows)
    config = tiny[0].config
    chunk = batch["query"]["chunks"][0]
    markers = (chunk["input_ids"] == config.embed_token_id).sum(dim=1)[batch["query"]["order"]]
    assert markers.tolist() == [2 if row["query_rationale"] else 1 for row in rows]
    thinks = (chunk["input_ids"] == config.think_token_id).sum(dim=1)[batch["query"]["order"]]
    assert thinks.tolist() == [1 if row["query_rationale"] else 0 for row in rows]
    labelled = chunk["labels"][chunk["labels"] != IGNORED]
    assert (labelled == config.end_think_token_id).sum() == sum(bool(row["query_rationale"]) for row in rows)
    assert not set(labelled.tolist()) & {config.embed_token_id, config.think_token_id}


def test_without_rationales_there_is_only_the_prompt(tiny, rows):
    chunk = JointCollator(tiny[1], tiny[0].config, use_rationales=False)(rows)["query"]["chunks"][0]
    assert (chunk["input_ids"] == tiny[0].config.embed_token_id).sum(dim=1).eq(1).all()
    assert (chunk["labels"] == IGNORED).all()


def test_equal_targets_are_embedded_once_and_point_back(collator, rows):
    batch = collator([rows[0], rows[12], rows[1]])  # red by picture, red by text, green
    assert batch["target_index"].tolist() == [0, 0, 1]
    assert len(batch["target"]["order"]) == 2
    assert batch["query_keys"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_chunks", [2, 3])
def test_chunks_change_nothing(tiny, rows, num_chunks):
    def embeddings(chunks):
        batch = JointCollator(tiny[1], tiny[0].config, num_chunks=chunks)(rows)
        assert len(batch["query"]["chunks"]) == chunks
        with torch.no_grad():
            output = forward_side(tiny[0], batch["query"])
        return output.embeddings * output.path_mask[..., None], output.rationale_logps.sum()

    whole, split = embeddings(1), embeddings(num_chunks)
    assert torch.allclose(whole[0], split[0], atol=1e-5)
    assert whole[1].item() == pytest.approx(split[1].item(), abs=1e-3)


def test_pictures_are_augmented(tiny, rows):
    seen = []

    def darker(picture):
        seen.append(picture)
        return picture.point(lambda value: value // 2)

    batch = JointCollator(tiny[1], tiny[0].config, augment=darker)([rows[3]])
    plain = JointCollator(tiny[1], tiny[0].config)([rows[3]])
    assert len(seen) == 1
    assert (batch["query"]["chunks"][0]["pixel_values"] < plain["query"]["chunks"][0]["pixel_values"]).all()


def test_a_rationale_over_the_limit_is_refused(tiny, rows):
    with pytest.raises(ValueError, match="A rationale has .* tokens; allowed: max_rationale_tokens=2"):
        JointCollator(tiny[1], tiny[0].config, max_rationale_tokens=2)(rows[:1])


def test_control_strings_in_a_rationale_are_plain_text(collator, tiny, rows):
    row = {**rows[12], "query_rationale": ["say <|embed|> and </think>"]}
    chunk = collator([row])["query"]["chunks"][0]
    assert (chunk["input_ids"] == tiny[0].config.embed_token_id).sum() == 2
    assert (chunk["input_ids"] == tiny[0].config.end_think_token_id).sum() == 1
