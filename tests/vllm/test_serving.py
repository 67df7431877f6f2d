"""vLLM loads what is exported for it, and gives our states and our rationales: in process, and as a server."""

from __future__ import annotations

import base64
import json
import urllib.request

import numpy as np
import pytest
import torch

TEXTS = ["What is the capital of Peru?", "Lima is a flag", "dog", "Describe the picture in one word. " * 6]


@pytest.fixture(scope="module")
def prompts(vllm_model):
    """The ids of each text's prompt, and the state at its marker."""
    features = vllm_model.preprocess(TEXTS)
    with torch.inference_mode():
        states = vllm_model[0].model(**features).last_hidden_state[:, -1]
    rows = zip(features["input_ids"], features["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows], states.numpy()


def close(theirs, ours):
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), rtol=0)


def test_states_in_process(pooling_llm, prompts):
    from vllm import PoolingParams

    ids, states = prompts
    outputs = pooling_llm.encode(
        [{"prompt_token_ids": row} for row in ids],
        pooling_params=PoolingParams(task="embed", use_activation=False),
        pooling_task="embed",
        use_tqdm=False,
    )
    close(np.stack([output.outputs.data.numpy() for output in outputs]), states)


def test_rationales_in_process(generating_llm, vllm_model, prompts):
    from vllm import SamplingParams

    config = vllm_model[0].model.config
    options = SamplingParams(
        temperature=0,
        max_tokens=8,
        stop_token_ids=[config.end_think_token_id],
        logit_bias={id_: -100.0 for id_ in config.suppressed_token_ids},
    )
    asked = [{"prompt_token_ids": ids + config.opening_ids} for ids in prompts[0]]
    outputs = generating_llm.generate(asked, options, use_tqdm=False)
    theirs = [vllm_model.tokenizer.decode(output.outputs[0].token_ids) for output in outputs]
    assert theirs == [row["rationale"] for row in vllm_model.explain(TEXTS, reasoning="always")]
    assert len(set(theirs)) == len(TEXTS)


def asked(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_states_of_a_server(pooling_server, prompts):
    ids, states = prompts
    body = {"model": pooling_server.name, "input": ids, "use_activation": False, "encoding_format": "base64"}
    rows = asked(f"{pooling_server.url}/embeddings", body)["data"]
    close(np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]), states)


def test_rationales_of_a_server(generating_server, vllm_model, prompts):
    config = vllm_model[0].model.config
    body = {
        "model": generating_server.name,
        "prompt": [ids + config.opening_ids for ids in prompts[0]],
        "temperature": 0,
        "max_tokens": 8,
        "stop_token_ids": [config.end_think_token_id],
        "logit_bias": {str(id_): -100 for id_ in config.suppressed_token_ids},
        "return_token_ids": True,
    }
    choices = asked(f"{generating_server.url}/completions", body)["choices"]
    theirs = [vllm_model.tokenizer.decode(choice["token_ids"]) for choice in choices]
    assert theirs == [row["rationale"] for row in vllm_model.explain(TEXTS, reasoning="always")]
