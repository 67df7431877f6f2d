"""The cache of embeddings: what was put comes out, for several processes at once, and nothing else does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmemb_r1.embedding_cache import FILE, EmbeddingCache
from mmemb_r1.encoding import batched, row_keys, row_options, unbatched
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS


def row(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "sentence_embedding": torch.arange(4) * value,
        "gate_prob": torch.tensor(value / 3),
        "reasoned": torch.tensor(value > 1),
        "rationale_ids": torch.arange(int(value)),
        "half": torch.tensor([value], dtype=torch.bfloat16),
    }


def assert_same(actual: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> None:
    assert actual is not None
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].shape == tensor.shape
        assert torch.equal(actual[name], tensor)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def change(cache: EmbeddingCache, statement: str, *values: object) -> None:
    """What a disk or another program does to the file."""
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_what_was_put_comes_out(cache):
    cache.put({b"a": row(1), b"b": row(2)})
    assert len(cache) == 2
    first, missing, second, again = cache.get([b"b", b"c", b"a", b"b"])
    assert missing is None
    assert_same(first, row(2))
    assert_same(second, row(1))
    assert_same(again, row(2))
    cache.put({b"a": row(3)})
    assert_same(cache.get([b"a"])[0], row(3))
    assert len(cache) == 2
    assert_same(EmbeddingCache(cache.folder).get([b"a"])[0], row(3))
    cache.put({})
    assert cache.get([]) == []


def test_more_keys_than_a_query_takes(cache):
    keys = [str(number).encode() for number in range(1205)]
    cache.put({key: {"x": torch.tensor(number)} for number, key in enumerate(keys)})
    assert [int(found["x"]) for found in cache.get(keys[::-1])] == list(range(1205))[::-1]


def test_rows_of_a_batch_are_kept_alone(cache):
    batch = torch.randn(1000, 4)
    cache.put({b"a": {"x": batch[3], "y": batch[4], "z": batch.T[0]}})
    assert_same(cache.get([b"a"])[0], {"x": batch[3], "y": batch[4], "z": batch[:, 0]})
    connection = sqlite3.connect(cache.path)
    assert connection.execute("SELECT length(value) FROM rows").fetchone()[0] < 5000
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        "value = substr(value, 1, length(value) - 3)",
        "value = x''",
        "value = 'text'",
        "checksum = x'00'",
        "key = x'63', value = value",  # under another key: the row of `a` is not that of `c`
    ],
)
def test_a_damaged_entry_is_missing_until_it_is_put_again(damage, cache):
    cache.put({b"a": row(1), b"b": row(2)})
    change(cache, f"UPDATE rows SET {damage} WHERE key = ?", b"a")
    found = cache.get([b"a", b"b", b"c"])
    assert found[0] is None
    assert_same(found[1], row(2))
    assert found[2] is None
    cache.put({b"a": row(3)})
    assert_same(cache.get([b"a"])[0], row(3))


def test_a_flipped_byte_is_found_wherever_it_is(cache):
    cache.put({b"a": row(1)})
    connection = sqlite3.connect(cache.path)
    value = connection.execute("SELECT value FROM rows").fetchone()[0]
    connection.close()
    for place in range(0, len(value), 7):
        change(cache, "UPDATE rows SET value = ?", value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :])
        assert cache.get([b"a"]) == [None]
    change(cache, "UPDATE rows SET value = ?", value)
    assert_same(cache.get([b"a"])[0], row(1))


def test_a_put_is_whole_or_not_there(cache):
    cache.put({b"a": row(1)})
    stop = "CREATE TRIGGER stop BEFORE INSERT ON rows WHEN NEW.key = x'63' BEGIN SELECT RAISE(ABORT, 'stopped'); END"
    change(cache, stop)
    with pytest.raises(ValueError, match="stopped"):
        cache.put({b"b": row(2), b"c": row(3)})
    assert cache.get([b"b", b"c"]) == [None, None]
    cache.put({b"d": row(4)})  # nothing is left locked
    assert len(cache) == 2


def test_only_the_user_may_read_it(cache):
    cache.put({b"a": row(1)})
    files = list(cache.folder.iterdir())
    assert len(files) > 1  # the log is there too
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_others_may_read_what_is_not_private(tmp_path):
    with EmbeddingCache(tmp_path / "shared", private=False) as shared:
        shared.put({b"a": row(1)})
        (tmp_path / "plain").touch()
        wanted = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
        assert {stat.S_IMODE(file.stat().st_mode) for file in shared.folder.iterdir()} == {wanted}


def test_other_files_are_refused(tmp_path, cache):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / FILE).write_text("something else " * 100)
    message = r"text/embeddings.sqlite3 can't be read as a cache .*not a database.*Choose another folder, or remove"
    with pytest.raises(ValueError, match=message):
        EmbeddingCache(tmp_path / "text")
    assert (tmp_path / "text" / FILE).read_text() == "something else " * 100

    (tmp_path / "other").mkdir()
    other = sqlite3.connect(tmp_path / "other" / FILE)
    other.execute("CREATE TABLE mine (x)")
    with pytest.raises(ValueError, match="it is another program's"):
        EmbeddingCache(tmp_path / "other")
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    other.close()

    change(cache, "PRAGMA user_version = 9")
    with pytest.raises(ValueError, match="it is layout 9 of another version"):
        EmbeddingCache(cache.folder)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        EmbeddingCache(tmp_path / "text" / FILE)


def test_a_cache_that_cannot_be_used_says_what_to_do(tmp_path, cache, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        EmbeddingCache(tmp_path / "file" / "inside")
    cache.put({b"a": row(1)})
    cache._connection().execute("PRAGMA max_page_count = 1")  # as on a disk without space
    message = r"embeddings.sqlite3 can't be used as a cache of embeddings \(.*\). .* Choose another folder, or encode"
    with pytest.raises(ValueError, match=message):
        cache.put({bytes([n]): {"x": torch.zeros(1000)} for n in range(100)})
    assert cache.get([b"a"])[0] is not None
    cache._connection().execute("PRAGMA query_only = 1")  # as in a folder where nothing may be written
    with pytest.raises(ValueError, match="readonly database.*in a folder where you may write"):
        cache.put({b"b": row(1)})

    def refuse(*args):
        raise OSError(30, "Read-only file system", str(cache.path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match="Read-only file system"):
        EmbeddingCache(tmp_path / "new")


def test_a_file_that_is_damaged_later_says_so(cache):
    cache.put({str(number).encode(): {"x": torch.zeros(100)} for number in range(200)})
    cache.close()
    with cache.path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 40_960)
    with pytest.raises(ValueError, match="can't be read as a cache of embeddings .*remove embeddings.sqlite3"):
        cache.get([str(number).encode() for number in range(200)])


def test_closing_and_opening(tmp_path):
    with EmbeddingCache(tmp_path / "a" / "b") as cache:
        cache.put({b"a": row(1)})
    assert [file.name for file in cache.folder.iterdir()] == [FILE]  # the log is gone
    assert len(cache) == 1
    cache.close()


def test_threads_share_one(cache):
    def work(number: int) -> None:
        for step in range(20):
            cache.put({f"{number}-{step}".encode(): row(number), b"shared": row(number)})
            if cache.get([b"shared"])[0] is None:
                failed.append(number)

    failed: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(cache) == 4 * 20 + 1
    cache.close()


# other processes

WORK = """
import sys, torch
from mmemb_r1.embedding_cache import EmbeddingCache
folder, number = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
cache = EmbeddingCache(folder)
for step in range(40):
    keys = [f"{step}-{part}".encode() for part in range(5)]
    cache.put({key: {"x": torch.full((50,), float(step)), "by": torch.tensor(number)} for key in keys})
    rows = cache.get(keys)
    assert all(row is not None and torch.equal(row["x"], torch.full((50,), float(step))) for row in rows)
    assert len({int(row["by"]) for row in cache.get(keys)}) == 1  # of one put, whole
"""


@pytest.mark.slow
def test_processes_that_write_the_same_keys_at_once(tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all at once, on a folder that is empty
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=300)
        assert child.returncode == 0
    cache = EmbeddingCache(tmp_path)
    assert len(cache) == 40 * 5
    assert float(cache.get([b"39-4"])[0]["x"][0]) == 39


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_puts(tmp_path):
    code = WORK.replace("range(40)", "range(10**9)")
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        end = time.monotonic() + 60
        while not (tmp_path / FILE).exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.5)
        child.kill()
        assert child.wait() == -signal.SIGKILL
        child.stdin.close()
        child.stdout.close()
        with EmbeddingCache(tmp_path) as cache:
            count = len(cache)
            assert count > 0
            assert count % 5 == 0
            keys = [f"{step}-{part}".encode() for step in range(count // 5) for part in range(5)]
            assert all(found is not None for found in cache.get(keys))


def in_child(work: Callable[[], bool]) -> int:
    """Exit status of a forked child that runs `work`: 0 if it returned true."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)  # not through the test runner
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_opens_its_own(cache):
    cache.put({b"a": row(1)})
    connection = cache._connection()

    def work() -> bool:
        if cache._connection() is connection or cache.get([b"a"])[0] is None:
            return False
        cache.put({b"b": row(2)})
        cache.close()  # leaves the parent's alone
        return len(cache) == 2

    assert in_child(work) == 0
    assert cache._connection() is connection
    assert_same(cache.get([b"b"])[0], row(2))


@pytest.mark.slow
def test_it_may_be_sent_to_a_spawned_process(cache):
    cache.put({b"a": row(1)})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(EmbeddingCache.put, (cache, {b"b": row(2)}))
    assert_same(cache.get([b"b"])[0], row(2))


# keys, and rows of batches


def keys(values=("a",), prompt=None, fingerprint="f", media=DEFAULTS, **options) -> list[bytes]:
    options = {"task": "query", **options}
    return row_keys(list(values), prompt, row_options(MMEmbR1Config(), options), fingerprint, media)


def test_all_that_changes_a_row_changes_its_key():
    different = [
        keys(),
        keys("b"),
        keys(prompt=""),
        keys(prompt="p"),
        keys(fingerprint="g"),
        keys(reasoning="never"),
        keys(reasoning="always"),
        keys(gate_threshold=0.25),
        keys(max_reasoning_tokens=3),
        keys(max_reasoning_rounds=2),
    ]
    assert len({key for (key,) in different}) == len(different)
    assert all(len(key) == 32 for (key,) in different)
    assert keys("aba") == [*keys("ab"), *keys("a")]


def test_what_changes_nothing_leaves_the_key():
    assert keys() == keys(reasoning="auto", gate_threshold=0.5, max_reasoning_tokens=128, batch_size=3)
    assert keys(task="document") == keys(reasoning="never") == keys(reasoning="never", max_reasoning_tokens=5)
    assert keys(task="document", reasoning="auto") == keys(task="query") == keys()


def test_options_out_of_range_are_refused_also_where_they_change_nothing():
    for options, message in [
        ({"reasoning": "sometimes"}, "'sometimes' is not known"),
        ({"reasoning": "never", "gate_threshold": 2}, "has to be a number from 0 to 1"),
        ({"max_reasoning_tokens": [3, 4]}, "has to be one whole number for all inputs"),
    ]:
        with pytest.raises(ValueError, match=message):
            row_options(MMEmbR1Config(), options)


def test_rows_make_their_batch_again():
    features = {
        "sentence_embedding": torch.randn(3, 4),
        "gate_prob": torch.rand(3),
        "rationale_ids": torch.tensor([[5, 6, 7], [-1, -1, -1], [8, -1, -1]]),
    }
    rows = unbatched(features)
    assert [len(row["rationale_ids"]) for row in rows] == [3, 0, 1]
    for name, tensor in batched(rows).items():
        assert torch.equal(tensor, features[name])
    assert batched(rows[1:])["rationale_ids"].tolist() == [[-1], [8]]
