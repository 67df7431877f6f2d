"""`--engine` of the commands: an exported checkpoint is run by servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.engines.vllm_double import VllmDouble

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.engines.served import save_served

TEXTS = ["Lima", "Oslo", "a longer text about a flag"]


@pytest.fixture(scope="module")
def model(thinking) -> MMEmbR1:
    return thinking(max_reasoning_tokens=3)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_served(model, folder)
    return folder


@pytest.fixture
def server(model) -> Iterator[VllmDouble]:
    double = VllmDouble(model)
    yield double
    double.close()


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    return path


def test_encode_by_servers(model, exported, server, lines, tmp_path):
    output = tmp_path / "vectors.npy"
    engine = ["--engine", f"{server.url},{server.url}", "--engine-options", "concurrency=2"]
    main(
        [
            "encode",
            "--model",
            str(exported),
            "--input",
            str(lines),
            "--output",
            str(output),
            "--reasoning=always",
            *engine,
        ]
    )
    np.testing.assert_allclose(np.load(output), model.encode(TEXTS, reasoning="always"), atol=2e-5)
    assert len(server.requests) > 4


def test_index_and_search_by_servers(model, exported, server, tmp_path, capsys):
    pytest.importorskip("lancedb")
    documents = tmp_path / "documents"
    documents.mkdir()
    for number, text in enumerate(TEXTS):
        (documents / f"{number}.txt").write_text(text)
    engine = ["--model", str(exported), "--engine", server.url]
    main(["index", str(documents), "--index", str(tmp_path / "index"), *engine])
    capsys.readouterr()
    main(["search", "Oslo", "--index", str(tmp_path / "index"), "--reasoning=never", "--json", *engine])
    by_server = json.loads(capsys.readouterr().out)
    model.save(str(tmp_path / "model"))
    main(
        [
            "search",
            "Oslo",
            "--index",
            str(tmp_path / "index"),
            "--reasoning=never",
            "--json",
            "--model",
            str(tmp_path / "model"),
        ]
    )
    local = json.loads(capsys.readouterr().out)
    assert [hit["id"] for hit in _hits(by_server)] == [hit["id"] for hit in _hits(local)]
    assert len(_hits(local)) == 3


def _hits(printed) -> list[dict]:
    return printed["hits"] if isinstance(printed, dict) else printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "fast"], "'fast' is not known; allowed"),
        (["--engine-options", "a=1"], "those of --engine"),
        (["--engine", "http://127.0.0.1:1", "--engine-options", "a"], "allowed: NAME=VALUE"),
        (["--engine", "http://127.0.0.1:1", "--engine-options", "patience=0.1"], "can't be reached"),
        (["--engine", "http://127.0.0.1:1", "--engine-options", "speed=9"], "speed"),
    ],
)
def test_engines_that_cannot_be_used(exported, lines, tmp_path, capsys, options, message):
    command = [
        "encode",
        "--model",
        str(exported),
        "--input",
        str(lines),
        "--output",
        str(tmp_path / "out.npy"),
        *options,
    ]
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main(command))
    assert stopped.value.code not in (0, None)
    assert message in " ".join(capsys.readouterr().err.split())
