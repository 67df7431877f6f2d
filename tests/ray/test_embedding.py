"""Workers on Ray embed what one process does, into the same folder, whatever the inputs come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from ray.exceptions import AuthenticationError

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.ray import embed_dataset
from mmemb_r1.ray.cluster import RETRIES, attempt_counter, check_attempts, connected, tell_again
from mmemb_r1.stream import encode_stream, load_shards

pytestmark = pytest.mark.usefixtures("cluster", "one_thread")
TEXTS = [f"text {number}" for number in range(40)]
OPTIONS = {"shard_size": 16, "workers": 1, "reasoning": "never"}


@pytest.fixture(scope="module")
def one_process(tiny_checkpoint):
    """Embed with `encode_stream`."""
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")

    def embed(inputs, output, **options):
        return encode_stream(model, inputs, output, file_format="parquet", **{"shard_size": 16, **options})

    return embed


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_folder_is_that_of_one_process_which_may_have_begun_it(tiny_checkpoint, one_process, corpus, tmp_path):
    inputs = [json.loads(line) for line in corpus.read_text().splitlines()]
    one_process(inputs, tmp_path / "one", reasoning="never")
    summary = embed_dataset(corpus, tiny_checkpoint, tmp_path / "ray", **{**OPTIONS, "workers": 2})
    assert (summary.rows, summary.dim, summary.shards, summary.skipped) == (40, 32, 3, 0)
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    (tmp_path / "one" / "shard-00001.parquet").unlink()
    (tmp_path / "one" / "index.json").unlink()
    again = embed_dataset(corpus, tiny_checkpoint, tmp_path / "one", **OPTIONS)
    assert again.skipped == 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert one_process(inputs, tmp_path / "ray", reasoning="never").skipped == 3


def test_pictures_ids_and_rationales_go_to_an_address_and_come_from_one(
    tiny_checkpoint, one_process, tmp_path, capsys
):
    colours = ["red", "green", "blue"]
    (tmp_path / "pictures").mkdir()
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "pictures" / f"{colour}.png")
    rows = [{"id": colour, "text": "what?", "image": f"{colour}.png"} for colour in colours]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    options = {"rationales": True, "reasoning": "always", "max_reasoning_tokens": 3}
    given = {"id_column": "id", "base": f"local://{tmp_path}/pictures", "shard_size": 2, "workers": 1}
    address = f"local://{tmp_path}/vectors"
    summary = embed_dataset(tmp_path / "a.parquet", tiny_checkpoint, address, **given, **options)
    assert (summary.output, summary.rows, summary.reasoned, summary.skipped) == (address, 3, 3, 0)
    values = [{"text": "what?", "image": str(tmp_path / "pictures" / f"{colour}.png")} for colour in colours]
    one_process(values, tmp_path / "one", ids=colours, **{**options, "shard_size": 2})
    assert contents(tmp_path / "vectors") == contents(tmp_path / "one")
    assert pyarrow.parquet.read_table(tmp_path / "vectors/shard-00000.parquet")["rationale"].to_pylist() != ["", ""]
    (tmp_path / "vectors" / "shard-00000.parquet").unlink()
    command = ["encode", "--ray", "--model", str(tiny_checkpoint), "--input", str(tmp_path / "a.parquet"), "--output"]
    command += [address, "--base", given["base"], "--id-column", "id", "--shard-size", "2", "--ray-workers", "1"]
    assert main([*command, "--rationales", "--reasoning", "always", "--max-reasoning-tokens", "3"]) == 0
    assert f"3 embeddings in {address}, 3 of them reasoned; 1 of 2 shards were there" in capsys.readouterr().err
    assert contents(tmp_path / "vectors") == contents(tmp_path / "one")
    with pytest.raises(ValueError, match=r"was begun with other settings or data: .*max_reasoning_tokens"):
        embed_dataset(
            tmp_path / "a.parquet", tiny_checkpoint, address, **given, **{**options, "max_reasoning_tokens": 2}
        )


def test_a_dataset_is_embedded_in_blocks_that_are_found_again(cluster, tiny_checkpoint, one_process, tmp_path):
    import ray.data

    table = pyarrow.table({"name": [f"id {number}" for number in range(40)], "text": TEXTS})
    for part in range(4):  # whose ends are not those of blocks
        pyarrow.parquet.write_table(table.slice(10 * part, 10), tmp_path / f"{part}.parquet")
    with pytest.raises(ValueError, match="a dataset needs an `id_column`"):
        embed_dataset(ray.data.from_items([{"text": "a"}]), tiny_checkpoint, tmp_path / "ray")

    def dataset():
        files = [str(tmp_path / f"{part}.parquet") for part in range(4)]
        return ray.data.read_parquet(files).map_batches(lambda batch: batch)

    summary = embed_dataset(dataset(), tiny_checkpoint, tmp_path / "ray", id_column="name", **OPTIONS)
    assert (summary.rows, summary.shards, summary.skipped) == (40, 3, 0)
    one_process([{"text": text} for text in TEXTS], tmp_path / "one", ids=table["name"].to_pylist(), reasoning="never")
    ids, vectors = load_shards(tmp_path / "ray")
    assert ids == table["name"].to_pylist()
    np.testing.assert_array_equal(vectors, load_shards(tmp_path / "one")[1])
    before = contents(tmp_path / "ray")
    sorted((tmp_path / "ray").glob("shard-*"))[1].unlink()
    again = embed_dataset(dataset(), tiny_checkpoint, tmp_path / "ray", id_column="name", **OPTIONS)
    assert again.skipped == 2
    assert contents(tmp_path / "ray") == before


def test_an_input_that_can_not_be_embedded_is_named_and_what_was_done_stays(tiny_checkpoint, corpus, tmp_path, capsys):
    with corpus.open("a") as stream:
        stream.write('\n{"text": "t", "image": "missing.png"}\n')
    command = ["encode", "--model", str(tiny_checkpoint), "--input", str(corpus), "--output", str(tmp_path / "ray")]
    command += ["--ray", "--ray-workers", "1", "--shard-size", "16", "--reasoning", "never"]
    assert main(command) == 2
    assert f"Input 40 can't be embedded: line 42 of {corpus}:" in (told := capsys.readouterr().err)
    assert "missing.png" in told
    names = set(contents(tmp_path / "ray"))
    assert {"settings.json", "shard-00000.parquet", "shard-00001.parquet"} >= names
    assert "index.json" not in names
    assert main([*command, "--thinker-form", "text"]) == 2
    assert "--thinker-form is for one process; leave it out with --ray" in capsys.readouterr().err
    corpus.write_text("\n".join(corpus.read_text().splitlines()[:40]))
    assert main(command) == 0
    assert "40 embeddings in" in capsys.readouterr().err
    assert load_shards(tmp_path / "ray")[0] == list(range(40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; allowed: 1 or more"),
        ({"threads": 64}, "a worker takes 64 CPU cores and 0 GPUs, and the cluster has 3 and 0 in all"),
        ({"gpus": 1}, "a worker takes 1 CPU cores and 1 GPUs"),
        ({"device": "cpu"}, "Ray gives each worker its own"),
        ({"precision": "int8"}, "shards hold float32 vectors"),
        ({"file_format": "npy"}, "'npy'"),
        ({"reasoning": "sometimes"}, "sometimes"),
    ],
)
def test_wrong_arguments_are_refused_before_a_worker_starts(options, message, tiny_checkpoint, corpus, tmp_path):
    with pytest.raises(ValueError, match=message):
        embed_dataset(corpus, tiny_checkpoint, tmp_path / "ray", **options)
    assert not (tmp_path / "ray").exists()


def test_a_model_that_is_not_there_is_not_fetched(corpus, tmp_path):
    with pytest.raises(OSError, match="org/missing"):
        embed_dataset(corpus, "org/missing", tmp_path / "ray", workers=1)


def test_work_whose_worker_dies_is_told_and_given_up_if_that_goes_on(cluster, caplog):
    counter = attempt_counter()
    check_attempts(counter, "block 1")
    tell_again(cluster, counter)
    assert not caplog.records
    for _ in range(RETRIES + 1):
        check_attempts(counter, "block 3")
    check_attempts(counter, "block 4")
    with pytest.raises(OSError, match=f"the worker of block 3 died {RETRIES + 1} times"):
        check_attempts(counter, "block 3")
    check_attempts(counter, "block 4")
    tell_again(cluster, counter)
    told = "workers died, and others began again what they had: 5 in all (block 3; block 3; block 3; and 2 more)"
    assert told in caplog.text


@pytest.mark.parametrize("kind", [ConnectionError, AuthenticationError])
def test_an_address_that_takes_no_process_is_told_with_what_it_may_need(cluster, monkeypatch, kind):
    def init(address, **options):
        raise kind("no cluster, or\n another token")

    monkeypatch.setattr(cluster, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "init", init)
    with (
        pytest.raises(
            ConnectionError, match="no Ray cluster at 'host:6379' .*, or another token.*RAY_AUTH_MODE=token"
        ),
        connected("host:6379"),
    ):
        pass


def test_nothing_is_told_to_anybody_or_reachable_and_ray_is_ray(cluster, processes):
    import ray
    from ray._common.usage import usage_lib

    import mmemb_r1.ray

    assert not usage_lib.usage_stats_enabled()
    ports = [
        port.laddr.ip.removeprefix("::ffff:")  # an IPv4 address as one of IPv6
        for process in [*processes("gcs_server"), *processes("raylet"), *processes("ray::")]
        for port in process.net_connections()
        if port.status == "LISTEN"
    ]
    assert ports and set(ports) <= {"127.0.0.1", "::1"}
    assert ray is not mmemb_r1.ray and ray.__name__ == "ray" and cluster is ray


def test_without_ray_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from mmemb_r1.ray import connected\n"
        "try:\n    connected().__enter__()\nexcept ImportError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert found.stdout.strip() == "this needs Ray: pip install 'mmemb-r1[ray]'"
