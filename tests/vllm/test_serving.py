"""vLLM loads what is exported for it, and gives our states and our rationales: in process, and as a server."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1.engines.served import export_facts
from mmemb_r1.modeling.backbones_mmemb_r1 import model_inputs

TEXTS = ["What is the capital of Peru?", "Lima is a flag", "dog", "Describe the picture in one word. " * 6]
SHOWN = {"image": Image.new("RGB", (300, 160), "navy"), "text": "What is this?"}


@torch.inference_mode()
def read(model, inputs):
    """The ids of each input's prompt, and the state at its marker."""
    features = model_inputs(model.preprocess(inputs))
    states = model[0].model(**features).last_hidden_state[:, -1]
    rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows], states.numpy()


@pytest.fixture(scope="module")
def prompts(vllm_model):
    return read(vllm_model, TEXTS)


def close(theirs, ours):
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), rtol=0)


def states_of(llm, prompts):
    from vllm import PoolingParams

    params = PoolingParams(task="embed", use_activation=False)
    outputs = llm.encode(prompts, pooling_params=params, pooling_task="embed", use_tqdm=False)
    return np.stack([output.outputs.data.numpy() for output in outputs])


def greedy(config, max_tokens=8):
    from vllm import SamplingParams

    bias = dict.fromkeys(config.suppressed_token_ids, -100.0)
    return SamplingParams(
        temperature=0, max_tokens=max_tokens, stop_token_ids=[config.end_think_token_id], logit_bias=bias
    )


def test_states_in_process(pooling_llm, prompts):
    ids, states = prompts
    close(states_of(pooling_llm, [{"prompt_token_ids": row} for row in ids]), states)


def test_rationales_in_process(generating_llm, vllm_model, prompts):
    config = vllm_model[0].model.config
    asked = [{"prompt_token_ids": ids + config.opening_ids} for ids in prompts[0]]
    outputs = generating_llm.generate(asked, greedy(config), use_tqdm=False)
    theirs = [vllm_model.tokenizer.decode(output.outputs[0].token_ids) for output in outputs]
    assert theirs == [row["rationale"] for row in vllm_model.explain(TEXTS, reasoning="always")]
    assert len(set(theirs)) == len(TEXTS)


def test_the_probe_is_what_vllm_gives(pooling_llm, generating_llm, vllm_model, vllm_folder):
    probe, config = export_facts(vllm_folder)["probe"], vllm_model[0].model.config
    (state,) = states_of(pooling_llm, [{"prompt_token_ids": probe["token_ids"]}])
    close(state, np.array(probe["state"], dtype=np.float32))
    asked = {"prompt_token_ids": probe["token_ids"] + config.opening_ids}
    (output,) = generating_llm.generate([asked], greedy(config, 16), use_tqdm=False)
    written = [id_ for id_ in output.outputs[0].token_ids if id_ != config.end_think_token_id]
    assert written == probe["after"] and len(written) > 1


def test_a_picture_in_process(pooling_llm, vllm_model):
    text = vllm_model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SHOWN["text"]}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    (state,) = states_of(pooling_llm, [{"prompt": text, "multi_modal_data": {"image": SHOWN["image"]}}])
    close(state, read(vllm_model, [SHOWN])[1][0])


def test_states_of_a_server(pooling_server, prompts):
    ids, states = prompts
    answer = pooling_server.ask("embeddings", input=ids, use_activation=False, encoding_format="base64")
    close(pooling_server.vectors(answer), states)


def test_a_chat_goes_on_after_the_marker(pooling_server, vllm_model, picture_part):
    """Requests of chats bring pictures; the template's variable is the one way to say what follows the prompt."""
    content = [picture_part(SHOWN["image"]), {"type": "text", "text": SHOWN["text"]}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "add_generation_prompt": True,
        "use_activation": False,
        "encoding_format": "base64",
    }
    features = model_inputs(vllm_model.preprocess([SHOWN]))
    for then in ("", "<think> It is navy.</think><|embed|>"):
        after = vllm_model.tokenizer(then, add_special_tokens=False, return_tensors="pt")["input_ids"].long()
        row = {**features, "input_ids": torch.cat([features["input_ids"], after], dim=1)}
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        if "mm_token_type_ids" in row:
            row["mm_token_type_ids"] = torch.nn.functional.pad(row["mm_token_type_ids"], (0, after.shape[1]))
        with torch.inference_mode():
            state = vllm_model[0].model(**row).last_hidden_state[0, -1].numpy()
        variables = {"chat_template_kwargs": {"mmemb_r1_then": then}} if then else {}
        answer = pooling_server.ask("embeddings", **body, **variables)
        assert answer["usage"]["prompt_tokens"] == row["input_ids"].shape[1]
        close(pooling_server.vectors(answer)[0], state)


def test_rationales_of_a_server(generating_server, vllm_model, prompts):
    config = vllm_model[0].model.config
    body = {
        "prompt": [ids + config.opening_ids for ids in prompts[0]],
        "temperature": 0,
        "max_tokens": 8,
        "stop_token_ids": [config.end_think_token_id],
        "logit_bias": {str(id_): -100 for id_ in config.suppressed_token_ids},
        "return_token_ids": True,
    }
    choices = generating_server.ask("completions", **body)["choices"]
    theirs = [vllm_model.tokenizer.decode(choice["token_ids"]) for choice in choices]
    assert theirs == [row["rationale"] for row in vllm_model.explain(TEXTS, reasoning="always")]
