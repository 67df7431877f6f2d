"""Corpora larger than memory: into shards, lazily, and on from where a run stopped."""

from __future__ import annotations

import gc
import json
import logging
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors import safe_open

from mmemb_r1 import MMEmbR1
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.stream import encode_stream, load_shards, read_shards

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [f"text {number}" for number in range(10)]
OPTIONS: dict[str, Any] = {"shard_size": 4, "reasoning": "never"}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> MMEmbR1:
    """Not to be changed."""
    return MMEmbR1(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def vectors(model: MMEmbR1) -> np.ndarray:
    """`(10, 32)`"""
    return model.encode(TEXTS, reasoning="never")


@pytest.fixture
def calls(model: MMEmbR1, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The inputs that were embedded, call by call."""
    seen: list[list[Any]] = []
    encode = model.encode

    def recorded(inputs: Any, **options: Any) -> Any:
        seen.append(list(inputs))
        return encode(inputs, **options)

    monkeypatch.setattr(model, "encode", recorded)
    return seen


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("file_format", ["safetensors", "parquet"])
@pytest.mark.parametrize("ids", [None, [f"id {number}" for number in range(10)], [number**9 for number in range(10)]])
def test_shards_hold_what_encode_gives(file_format, ids, model, vectors, tmp_path):
    summary = encode_stream(model, iter(TEXTS), tmp_path, ids=ids and iter(ids), file_format=file_format, **OPTIONS)
    assert names(tmp_path) == ["index.json", "settings.json", *(f"shard-0000{n}.{file_format}" for n in range(3))]
    assert (summary.rows, summary.dim, summary.shards, summary.reasoned, summary.skipped) == (10, 32, 3, 0, 0)
    found, embeddings = load_shards(tmp_path)
    assert found == (ids or list(range(10)))
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, vectors, atol=1e-6)
    shards = list(read_shards(tmp_path))
    assert [len(names) for names, _ in shards] == [len(rows) for _, rows in shards] == [4, 4, 2]
    assert isinstance(shards[0][1], np.memmap) == (file_format == "safetensors")
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in shards]), embeddings)
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["rows"], index["dim"], len(index["shards"])) == (10, 32, 3)
    assert index["settings"]["reasoning"] == "never"


def test_what_was_thought_is_kept(model, tmp_path):
    options = {"reasoning": "always", "max_reasoning_tokens": 3}
    expected = model.explain(TEXTS[:3], **options)
    for file_format in ("safetensors", "parquet"):
        summary = encode_stream(
            model, TEXTS[:3], tmp_path / file_format, file_format=file_format, rationales=True, **options
        )
        assert summary.reasoned == 3
    with safe_open(tmp_path / "safetensors" / "shard-00000.safetensors", framework="numpy") as tensors:
        assert json.loads(tensors.metadata()["rationales"]) == [row["rationale"] for row in expected]
        columns = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "shard-00000.parquet").to_pydict()
    assert table["rationale"] == [row["rationale"] for row in expected]
    for name in ("gate_prob", "reasoned", "num_reasoning_tokens"):
        np.testing.assert_allclose(columns[name], [row[name] for row in expected], rtol=1e-6)
        np.testing.assert_allclose(table[name], [row[name] for row in expected], rtol=1e-6)
    np.testing.assert_allclose(table["embedding"], columns["embeddings"], atol=1e-6)
    assert [row["num_reasoning_tokens"] for row in expected] != [0] * 3


def test_every_kind_of_input(model, tmp_path):
    message = {"role": "user", "content": "a"}
    inputs = [message, "b", Image.new("RGB", (32, 32)), {"text": "c", "instruction": "Be brief."}, [message]]
    encode_stream(model, inputs, tmp_path, **OPTIONS)
    _, embeddings = load_shards(tmp_path)
    np.testing.assert_allclose(embeddings, model.encode([[message], *inputs[1:]], reasoning="never"), atol=1e-6)
    np.testing.assert_allclose(embeddings[0], embeddings[4], atol=1e-6)


def test_documents_have_their_prompt_and_default(tiny_checkpoint, tmp_path):
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    model.prompts["document"] = "Store it."
    model[0].model.config.reasoning = "always"
    summary = encode_stream(model, TEXTS, tmp_path, task="document", truncate_dim=8)
    expected = model.encode_document(TEXTS, truncate_dim=8)
    np.testing.assert_allclose(load_shards(tmp_path)[1], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert (summary.dim, summary.reasoned) == (8, 0)


def test_no_more_than_a_shard_is_in_memory(model, tmp_path):
    alive: list[weakref.ref[Any]] = []
    highest = 0

    class Input(dict):  # plain strings and dicts can't be watched
        pass

    def corpus() -> Iterator[Any]:
        nonlocal highest
        for text in TEXTS * 3:
            value = Input(text=text)
            alive.append(weakref.ref(value))
            highest = max(highest, sum(ref() is not None for ref in alive))
            yield value
            del value

    gc.collect()
    gc.disable()  # by counting of references alone
    try:
        encode_stream(model, corpus(), tmp_path, **OPTIONS)
        encode_stream(model, corpus(), tmp_path, **OPTIONS)  # skipping
    finally:
        gc.enable()
    assert highest <= 4 + 1  # the next one


def test_a_run_that_stopped_goes_on(model, vectors, calls, tmp_path):
    def broken() -> Iterator[str]:
        yield from TEXTS[:9]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        encode_stream(model, broken(), tmp_path, **OPTIONS)
    assert calls == [TEXTS[:4], TEXTS[4:8]]
    assert names(tmp_path) == ["settings.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    with pytest.raises(
        ValueError, match="holds a run of encode_stream that is not finished; make the same call again"
    ):
        load_shards(tmp_path)

    calls.clear()
    summary = encode_stream(model, iter(TEXTS), tmp_path, **OPTIONS)
    assert calls == [TEXTS[8:]]
    assert (summary.rows, summary.shards, summary.skipped) == (10, 3, 2)
    np.testing.assert_allclose(load_shards(tmp_path)[1], vectors, atol=1e-6)

    calls.clear()
    before = contents(tmp_path)
    again = encode_stream(model, iter(TEXTS), tmp_path, **OPTIONS)
    assert calls == []
    assert (again.rows, again.dim, again.shards, again.skipped) == (10, 32, 3, 3)
    assert contents(tmp_path) == before


KILLED = """
import sys, time
from mmemb_r1 import MMEmbR1
from mmemb_r1.stream import encode_stream
def corpus():
    for number in range(10**6):
        time.sleep(0.01)
        yield f"text {number}"
encode_stream(MMEmbR1(sys.argv[1], device="cpu"), corpus(), sys.argv[2], shard_size=4, reasoning="never")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_checkpoint, model, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tiny_checkpoint), str(tmp_path)])
    end = time.monotonic() + 300
    while not (tmp_path / "shard-00000.safetensors").exists() and time.monotonic() < end and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    there = len(list(tmp_path.glob("shard-*")))
    texts = [f"text {number}" for number in range(4 * there + 2)]
    summary = encode_stream(model, texts, tmp_path, **OPTIONS)
    assert (summary.skipped, summary.shards) == (there, there + 1)
    np.testing.assert_allclose(load_shards(tmp_path)[1], model.encode(texts, reasoning="never"), atol=1e-6)


def test_a_shard_that_is_gone_is_made_again(model, calls, tmp_path):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    before = contents(tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    calls.clear()
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    assert calls == [TEXTS[4:8]]
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("file_format", ["safetensors", "parquet"])
def test_a_damaged_shard_is_named(file_format, model, tmp_path):
    encode_stream(model, TEXTS, tmp_path, file_format=file_format, **OPTIONS)
    shard = tmp_path / f"shard-00001.{file_format}"
    shard.write_bytes(shard.read_bytes()[:20])
    for call in (
        lambda: encode_stream(model, TEXTS, tmp_path, file_format=file_format, **OPTIONS),
        lambda: load_shards(tmp_path),
    ):
        with pytest.raises(ValueError, match=rf"{shard.name} can't be read .*Remove it"):
            call()
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard.name} can't be read"):
        load_shards(tmp_path)
    encode_stream(model, TEXTS, tmp_path, file_format=file_format, **OPTIONS)
    assert len(load_shards(tmp_path)[0]) == 10


@pytest.mark.parametrize("ids", [None, [f"id {number}" for number in range(10)]])
@pytest.mark.parametrize("file_format", ["safetensors", "parquet"])
def test_a_flipped_bit_anywhere_is_noticed(file_format, ids, model, tmp_path):
    """Vectors are right or there is an error that names the file; `shard-00000` is written over bit by bit."""
    options = {"reasoning": "always", "max_reasoning_tokens": 2, "rationales": True, "file_format": file_format}
    encode_stream(model, TEXTS, tmp_path, ids=ids, **{**OPTIONS, **options})
    names, expected = load_shards(tmp_path)
    shard = tmp_path / f"shard-00000.{file_format}"
    whole, silent = shard.read_bytes(), 0
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(place) % 8
        shard.write_bytes(broken)
        try:
            found, embeddings = load_shards(tmp_path)
        except ValueError as error:
            assert str(shard) in str(error)
            continue
        silent += 1
        assert found == names
        np.testing.assert_array_equal(embeddings, expected)
    assert silent < 30  # a few bits carry nothing: what Parquet keeps for other readers


def test_a_shard_of_another_run_or_place_is_refused(model, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    encode_stream(model, TEXTS, run, **OPTIONS)
    encode_stream(model, TEXTS, other, prompt="Store it.", **OPTIONS)
    names = [f"shard-0000{number}.safetensors" for number in range(3)]
    whole = (run / names[0]).read_bytes()
    for foreign, message in [
        (other / names[0], "written by a run with another model"),
        (run / names[1], "other inputs"),
    ]:
        (run / names[0]).write_bytes(foreign.read_bytes())
        with pytest.raises(ValueError, match=rf"{names[0]} is not the file that .*index\.json lists"):
            load_shards(run)
        with pytest.raises(ValueError, match=rf"{names[0]} .*{message}"):
            encode_stream(model, TEXTS, run, **OPTIONS)
    (run / names[0]).write_bytes(whole)
    assert encode_stream(model, TEXTS, run, **OPTIONS).skipped == 3


def test_settings_that_are_gone_do_not_let_another_run_in(model, tmp_path):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    settings = (tmp_path / "settings.json").read_bytes()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="shard-00000.safetensors was written by a run with another model, options"):
        encode_stream(model, TEXTS, tmp_path, prompt="Store it.", **OPTIONS)
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    assert (tmp_path / "settings.json").read_bytes() == settings


def test_damaged_notes_are_named_and_the_index_is_written_anew(model, tmp_path):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    before = contents(tmp_path)
    for note in ("index.json", "settings.json"):
        (tmp_path / note).write_bytes(b'{"rows": 1\xff')
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        load_shards(tmp_path)
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*remove it"):
        encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    (tmp_path / "settings.json").unlink()
    assert encode_stream(model, TEXTS, tmp_path, **OPTIONS).skipped == 3
    assert contents(tmp_path) == before


def test_a_file_of_another_origin_is_no_shard(model, tmp_path):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    from safetensors.numpy import save_file

    save_file({"embeddings": np.zeros((4, 32), dtype=np.float32)}, tmp_path / "shard-00001.safetensors")
    with pytest.raises(ValueError, match="shard-00001.safetensors can't be read .it is no shard of embeddings"):
        encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="it is no shard of embeddings"):
        load_shards(tmp_path)


def test_other_inputs_or_ids_are_refused(model, calls, tmp_path):
    ids = [f"id {number}" for number in range(10)]
    encode_stream(model, TEXTS, tmp_path, ids=ids, **OPTIONS)
    before = contents(tmp_path)
    calls.clear()
    for values, others, (shard, had, now) in [
        ([*TEXTS[:5], "other", *TEXTS[6:]], ids, (1, 4, 4)),
        (TEXTS, [*ids[:9], "other"], (2, 2, 2)),
        (TEXTS[1:], ids[1:], (0, 4, 4)),
        ([*TEXTS, "more"], [*ids, "more"], (2, 2, 3)),
        (TEXTS[:7], ids[:7], (1, 4, 3)),
    ]:
        message = rf"shard-0000{shard}\.safetensors holds other inputs .*: {had} of them, now there are {now}, from"
        with pytest.raises(ValueError, match=f"{message} number {4 * shard} on"):
            encode_stream(model, values, tmp_path, ids=others, **OPTIONS)
    with pytest.raises(ValueError, match="holds more than 2 shards, and the inputs end there"):
        encode_stream(model, TEXTS[:8], tmp_path, ids=ids[:8], **OPTIONS)
    assert contents(tmp_path) == before
    assert calls == []


def test_a_picture_that_changed_is_noticed(model, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    inputs = [{"image": str(tmp_path / "a.png")}]
    encode_stream(model, inputs, tmp_path / "out", **OPTIONS)
    assert encode_stream(model, inputs, tmp_path / "out", **OPTIONS).skipped == 1
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds other inputs"):
        encode_stream(model, inputs, tmp_path / "out", **OPTIONS)


def test_more_full_shards_may_be_added(model, tmp_path):
    encode_stream(model, TEXTS[:4], tmp_path, **OPTIONS)
    assert encode_stream(model, TEXTS, tmp_path, **OPTIONS).skipped == 1
    assert len(load_shards(tmp_path)[0]) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 5}, "shard_size was 4, is now 5"),
        ({"file_format": "parquet"}, "file_format was 'safetensors', is now 'parquet'"),
        ({"rationales": True}, "rationales was False, is now True"),
        ({"reasoning": "always"}, "reasoning was 'never', is now 'always'"),
        ({"prompt": "Store it."}, "options.prompt was .*, is now 'Store it.'"),
        ({"truncate_dim": 8}, "options.truncate_dim was None, is now 8"),
        ({"normalize_embeddings": True}, "options.normalize_embeddings was None, is now True"),
    ],
)
def test_other_settings_are_refused(change, message, model, tmp_path):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        encode_stream(model, TEXTS, tmp_path, **{**OPTIONS, **change})


def test_another_model_is_refused(model, tmp_path, monkeypatch):
    encode_stream(model, TEXTS, tmp_path, **OPTIONS)
    encode_stream(model, TEXTS, tmp_path, **OPTIONS, batch_size=2)  # which changes no row
    monkeypatch.setattr(model[0].model.config, "normalize", False)
    with pytest.raises(ValueError, match="checkpoint was .*, is now"):
        encode_stream(model, TEXTS, tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (range(9), "there are 9 ids, and more inputs"),
        (range(11), "there are 10 inputs, and more ids"),
        ([0, 1, 2, 1, *range(4, 10)], "the id 1 comes twice"),
        (["a", "b", "a", *"cdefghi"], "the id 'a' comes twice"),
        ([0, "a", *range(2, 10)], "the id 'a' is no int as those before"),
        ([*range(5), *"abcde"], "the id 'a' is no int as those before"),
        ([*"abcd", *range(6)], "the id 0 is no str as those before"),
        ([0.5] * 10, "an id is 0.5 of type float; allowed: strings, or 64-bit integers"),
        ([True] * 10, "an id is True of type bool"),
        ([2**63] * 10, "an id is 9223372036854775808"),
    ],
)
def test_ids_that_are_no_ids(ids, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode_stream(model, TEXTS, tmp_path, ids=ids, **OPTIONS)
    assert not (tmp_path / "index.json").exists()


def test_integers_of_numpy_are_ids(model, tmp_path):
    encode_stream(model, TEXTS[:2], tmp_path, ids=np.array([7, 8]), **OPTIONS)
    assert load_shards(tmp_path)[0] == [7, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size=0 .* at least 1"),
        ({"file_format": "npy"}, "file_format='npy' is not known; allowed: safetensors, parquet"),
        ({"precision": "int8"}, "precision can't be chosen here"),
        ({"reasoning": "sometimes"}, "reasoning='sometimes' is not known"),
        ({"colour": "red"}, "colour"),
        ({"shard_size": "8"}, "shard_size='8' "),
        ({"shard_size": True}, "shard_size=True "),
        ({"rationales": "no"}, "rationales='no' .* has to be True or False"),
        ({"truncate_dim": 10**6}, "can't be truncated to 1000000"),
    ],
)
def test_arguments_that_are_refused(options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode_stream(model, TEXTS, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "one",
    ["Lima", b"Lima", {"text": "Lima"}, [{"role": "user", "content": "Lima"}], np.zeros((8, 8, 3), np.uint8), 3, None],
    ids=str,
)
def test_one_input_is_no_stream(one, model, tmp_path):
    """Or a word would be embedded letter by letter, and a dict by the names of its keys."""
    with pytest.raises(ValueError, match="is one input, or none; pass a list of inputs"):
        encode_stream(model, one, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_in_the_settings(model, tmp_path):
    given = {"truncate_dim": np.int64(8), "shard_size": np.int64(4), "max_reasoning_tokens": np.int32(4)}
    assert encode_stream(model, TEXTS, tmp_path, **{**OPTIONS, **given}).dim == 8
    plain = {"truncate_dim": 8, "shard_size": 4, "max_reasoning_tokens": 4}
    assert encode_stream(model, TEXTS, tmp_path, **{**OPTIONS, **plain}).skipped == 3  # it goes on as the same run


def test_no_inputs_and_no_folder(model, tmp_path):
    with pytest.raises(ValueError, match="there are no inputs to embed"):
        encode_stream(model, [], tmp_path / "out")
    with pytest.raises(ValueError, match="out holds no embeddings of encode_stream"):
        load_shards(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        encode_stream(model, TEXTS, tmp_path / "file")


def test_an_input_that_cannot_be_embedded_is_named_by_its_place(model, tmp_path):
    inputs = [*TEXTS[:6], {"image": "missing.png"}, *TEXTS[6:]]
    with pytest.raises(InputError, match="Input 6 can't be embedded: .*missing.png") as error:
        encode_stream(model, inputs, tmp_path, **OPTIONS)
    assert error.value.index == 6
    assert names(tmp_path) == ["settings.json", "shard-00000.safetensors"]


def test_progress(model, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr("mmemb_r1.progress.PERIOD", 0)
    with caplog.at_level(logging.INFO, logger="mmemb_r1.progress"):
        encode_stream(model, TEXTS, tmp_path, show_progress_bar=False, **OPTIONS)
    assert [message.split(",")[0] for message in caplog.messages] == [f"Embedding: {n} of 10" for n in (4, 8, 10)]
    monkeypatch.setattr("mmemb_r1.progress.shows_bars", lambda: True)
    encode_stream(model, iter(TEXTS), tmp_path, show_progress_bar=True, **OPTIONS)
    shown = capsys.readouterr()
    assert "10/?" in shown.err
    assert shown.out == ""
