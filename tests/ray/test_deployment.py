"""Replicas on Ray Serve answer as the server of `mmemb-r1 serve`, and go on when one of them is killed."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from contextlib import closing

import numpy as np
import pytest
import yaml

from mmemb_r1 import MMEmbR1
from mmemb_r1.ray.deployment import NAME, app

pytestmark = pytest.mark.usefixtures("one_thread")
INPUTS = ["a red square", {"text": "a green circle", "instruction": "Be brief."}, "what?"]


def free_port():
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def asked(url, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def served(cluster, root, tiny_checkpoint):
    """What examples/ray-serve.yaml serves, with two replicas of the tiny checkpoint, at a free port."""
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    written = yaml.safe_load((root / "examples" / "ray-serve.yaml").read_text(encoding="utf-8"))
    config = ServeDeploySchema(**written)
    (one,) = config.applications
    assert (one.import_path, one.route_prefix) == ("mmemb_r1.ray.deployment:app", "/")
    (deployment,) = one.deployments
    assert deployment.name == NAME
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    args = {**written["applications"][0]["args"], "model": str(tiny_checkpoint), "name": "tiny"}
    application = app(args)
    replicas = application._bound_deployment.options(num_replicas=2)
    serve.run(replicas.bind(*application._bound_deployment.init_args), name="mmemb-r1", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_replicas_answer_with_the_vectors_of_encode_also_after_one_is_killed(served, processes, tiny_checkpoint):
    expected = MMEmbR1(str(tiny_checkpoint), device="cpu").encode(INPUTS, reasoning="never")

    def check():
        answer = asked(f"{served}/v1/embeddings", model="tiny", input=INPUTS, reasoning="never", input_type="query")
        vectors = np.array([row["embedding"] for row in answer["data"]], dtype=np.float32)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)

    check()
    assert [one["id"] for one in asked(f"{served}/v1/models")["data"]] == ["tiny"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked(f"{served}/v1/embeddings", model="tiny", input=[[1, 2]])
    assert caught.value.code == 400
    assert "error" in json.load(caught.value)
    replicas = processes("ServeReplica")
    assert len(replicas) == 2
    replicas[0].kill()
    for _ in range(4):
        check()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "the key 'model' is missing"),
        ({"model": "m", "modle": "m"}, "'modle' is not known; allowed: model, .*did you mean 'model'"),
        ({"model": 3}, "args: model is 3, of type int; allowed: str"),
        ({"model": "m", "settings": []}, "args: settings is"),
        ({"model": "m", "settings": {"max_input": 3}}, "args: settings: .*'max_input'; allowed: batch_size"),
        ({"model": "m", "settings": {"max_inputs": 0}}, "max_inputs=0 has to be more than 0"),
    ],
)
def test_wrong_arguments_are_refused_before_a_replica_starts(args, message):
    with pytest.raises(ValueError, match=message):
        app(args)
