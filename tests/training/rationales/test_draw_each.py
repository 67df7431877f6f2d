"""Servers draw from one queue over all shards, side by side, and pictures are sent once."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image
from tests.chat_server import Reply, Server, request, worker

from mmemb_r1.training.rationales.draw import draw_rationales
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError

pytestmark = pytest.mark.usefixtures("quick_retries")
PICTURE = Image.new("RGB", (4, 4))


def pairs(count: int) -> Dataset:
    rows = [{"pair_id": str(row), "query": {"text": f"{row}?"}, "target": {"text": "t"}} for row in range(count)]
    return Dataset.from_list(rows)


def draw(output: Path, *workers: Any, count: int = 12, **options: Any) -> Any:
    options = {"sides": ["query"], "shard_size": 2, "progress": False} | options
    return draw_rationales(pairs(count), workers, output, **options)


def rows_of(output: Path) -> list[dict[str, Any]]:
    return read_rationales(output).to_list()


class Waiting:
    """Keeps requests until `count` of them wait at once: fewer never get an answer."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count)

    def __call__(self, body: dict[str, Any], number: int) -> Reply:
        try:
            self.barrier.wait(timeout=10)
        except threading.BrokenBarrierError:
            return Reply("too few at once", 400)
        return Reply(f"seed {body['seed']}")


# one queue


def test_all_slots_are_used_across_batches_and_shards(tmp_path: Path, server: Server) -> None:
    server.reply = Waiting(8)
    draw(tmp_path, worker(server, concurrency=8, batch_size=2, num_samples=1), count=16)
    assert [row["error"] for row in rows_of(tmp_path)] == [None] * 16
    assert server.connections <= 9  # one more asked whether the server is there


def test_a_late_answer_holds_up_nothing(tmp_path: Path, server: Server) -> None:
    late = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Reply:
        text = body["messages"][1]["content"]
        if text == "0?":
            return Reply("late") if late.wait(timeout=10) else Reply("nobody else was asked", 400)
        if text == "11?":  # the last one
            late.set()
        return Reply(text)

    server.reply = reply
    draw(tmp_path, worker(server, concurrency=2, batch_size=2, num_samples=1))
    assert [row["text"] for row in rows_of(tmp_path)] == ["late", *(f"{row}?" for row in range(1, 12))]


def test_no_more_inputs_are_read_than_can_be_asked(server: Server) -> None:
    read: list[int] = []

    def requests() -> Generator[RationaleRequest]:
        for number in range(100):
            read.append(number)
            yield request(str(number), (1,))

    for done, _ in enumerate(worker(server, concurrency=3).draw_each(requests()), start=1):
        assert len(read) - done <= 3 + 32 + 1
    assert len(read) == done == 100


def test_workers_of_a_pool_draw_side_by_side(tmp_path: Path, server: Server) -> None:
    server.reply = Waiting(3)  # one request of each worker
    workers = [worker(server, name=name, concurrency=1, num_samples=1) for name in "abc"]
    summary = draw(tmp_path, *workers, count=4)
    assert [one.name for one in summary.workers] == ["a", "b", "c"]
    assert [row["error"] for row in rows_of(tmp_path)] == [None] * 12


def test_what_is_drawn_does_not_depend_on_the_schedule(tmp_path: Path, server: Server) -> None:
    draw(tmp_path / "one", worker(server, concurrency=1))
    server.reply = lambda body, number: Reply(f"seed {body['seed']}", delay=0.02 * (body["seed"] % 4))
    draw(tmp_path / "many", worker(server, concurrency=16), shard_size=5)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "many")


# what ends a run


def test_what_was_drawn_before_an_error_is_kept_and_not_asked_again(tmp_path: Path, server: Server) -> None:
    draw(tmp_path / "calm", worker(server))
    asked = len(server.requests)
    for allowed in (7, 23, 1000):
        server.requests.clear()
        server.reply = lambda body, number, allowed=allowed: (
            Reply(f"seed {body['seed']}") if number <= allowed else Reply("no such model", 404)
        )
        kept = sum(pq.read_metadata(shard).num_rows for shard in (tmp_path / "wild" / "shards").glob("*.parquet"))
        if allowed == 1000:
            draw(tmp_path / "wild", worker(server, concurrency=2))
        else:
            with pytest.raises(WorkerError, match="knows no such path or model"):
                draw(tmp_path / "wild", worker(server, concurrency=2))
    assert rows_of(tmp_path / "wild") == rows_of(tmp_path / "calm")
    assert len(server.requests) == asked - kept


def test_an_error_of_one_worker_ends_the_others_at_once(tmp_path: Path, server: Server) -> None:
    asked = threading.Event()

    def reply(body: dict[str, Any], number: int) -> Reply:
        if body["model"] == "slow":
            asked.set()
            return Reply(delay=60)
        asked.wait(timeout=10)
        return Reply("no such model", 404)

    server.reply = reply
    with pytest.raises(WorkerError, match="Worker 'b'"):  # the test's own time limit is that of the slow answer
        draw(tmp_path, worker(server, name="a", model="slow", timeout=50), worker(server, name="b"))
    assert not (tmp_path / "shards").exists()


def test_an_interrupt_of_a_local_worker_ends_the_others_at_once(tmp_path: Path, server: Server) -> None:
    asked = threading.Event()

    class Interrupted:
        name, num_samples, batch_size, definition = "local", 1, 1, {"kind": "local"}

        def draw(self, requests: Any) -> Any:
            asked.wait(timeout=10)
            raise KeyboardInterrupt

    def reply(body: dict[str, Any], number: int) -> Reply:
        asked.set()
        return Reply(delay=60)

    server.reply = reply
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, worker(server, name="a", timeout=50), Interrupted())
    assert not (tmp_path / "shards").exists()  # nor did the server's worker wait for its failures


def test_too_many_failures_end_all_workers(tmp_path: Path, server: Server) -> None:
    server.reply = lambda body, number: Reply("no", 400)
    summary = draw(tmp_path, worker(server, name="a"), worker(server, name="b"), max_failures=5)
    assert summary.aborted.startswith("stopped: more answers failed than the 5 that are allowed.")


class Own:
    """A worker of somebody else."""

    name, num_samples, batch_size, definition = "own", 1, 1, {"kind": "own"}

    def __init__(self, answers: list[tuple[int, list[Rationale | Failure]]]) -> None:
        self.answers = answers

    def draw_each(self, requests: Iterable[RationaleRequest]) -> Generator[tuple[int, list[Rationale | Failure]]]:
        list(requests)
        yield from self.answers


R = [Rationale("r", 1, "stop")]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(0, R)], "'own' ended with 1 inputs left; it has to answer each input once"),
        ([(0, R), (0, R)], "'own' answered input 0 twice"),
        ([(2, R)], "'own' answered input 2 twice, or was never asked it"),
        ([(0, R * 2)], "'own' gave 2 answers to an input; it has to give 1"),
    ],
)
def test_a_worker_that_does_not_answer_each_input_once_is_told(tmp_path: Path, answers: Any, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        draw(tmp_path, Own(answers), count=2)


def test_a_worker_of_ones_own_may_answer_in_any_order(tmp_path: Path) -> None:
    said = [(number, [Rationale(str(number), 1, "stop")]) for number in (3, 0, 2, 1)]
    draw(tmp_path, Own(said), count=4)
    assert [row["text"] for row in rows_of(tmp_path)] == ["0", "1", "2", "3"]


# pictures are sent once


def together(body: dict[str, Any], number: int) -> Reply:
    """Like vLLM, which draws rationale i of a request with its seed + i."""
    return Reply(contents=[f"seed {body['seed'] + index}" for index in range(body.get("n", 1))])


def test_a_picture_is_sent_once_for_all_its_rationales(server: Server) -> None:
    server.reply = together
    [drawn] = worker(server).draw([request(image=PICTURE, seeds=(5, 9, 2))])
    assert drawn == [Rationale(f"seed {seed}", 5, "stop") for seed in (5, 6, 7)]
    [body] = server.requests
    assert (body["n"], body["seed"]) == (3, 5)


def test_it_can_be_sent_with_each(server: Server) -> None:
    server.reply = together
    [drawn] = worker(server, upload_once=False).draw([request(image=PICTURE, seeds=(5, 9))])
    assert drawn == [Rationale(f"seed {seed}", 5, "stop") for seed in (5, 9)]
    assert [body.get("n") for body in server.requests] == [None, None]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_n_gets_a_request_for_each(server: Server, status: int) -> None:
    server.reply = lambda body, number: Reply("n must be 1", status) if "n" in body else Reply(f"seed {body['seed']}")
    drawn = worker(server, concurrency=1).draw([request(image=PICTURE, seeds=(5, 9))] * 50)
    assert drawn == [[Rationale(f"seed {seed}", 5, "stop") for seed in (5, 9)]] * 50
    assert sum("n" in body for body in server.requests) < 50  # it is remembered


def test_a_server_that_ignores_n_is_asked_for_the_rest(server: Server) -> None:
    server.reply = lambda body, number: Reply(f"seed {body['seed']}")
    [drawn] = worker(server).draw([request(image=PICTURE, seeds=(5, 9, 2))])
    assert drawn == [Rationale(f"seed {seed}", 5, "stop") for seed in (5, 9, 2)]


def test_a_refused_picture_does_not_speak_against_n(server: Server) -> None:
    red = Image.new("RGB", (8, 8), "red")
    server.reply = lambda body, number: (
        Reply("too red", 400) if body["messages"][1]["content"][1]["text"] == "red" else together(body, number)
    )
    asked = [request("red", image=red), *[request("black", image=PICTURE)] * 3]
    bad, *good = worker(server, concurrency=1).draw(asked)
    assert bad == [Failure("the server answered 400: too red")] * 2
    assert good == [[Rationale("seed 1", 5, "stop"), Rationale("seed 2", 5, "stop")]] * 3
    assert sum(body.get("n") == 2 for body in server.requests) == 4


def test_rationales_of_one_request_take_as_many_slots(server: Server) -> None:
    server.reply = lambda body, number: Reply(contents=["a"] * body["n"], delay=0.05)
    worker(server, concurrency=5).draw([request(image=PICTURE, seeds=(1, 2))] * 6)
    assert server.most_active == 2  # of two rationales each
    worker(server, concurrency=1).draw([request(image=PICTURE, seeds=(1, 2))])  # more than there are: all of them
