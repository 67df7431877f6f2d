"""Drawing from a pool. Run as a script, this file is a process to be killed: see `TestProcesses`."""

from __future__ import annotations

import gc
import logging
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature

from mmemb_r1.training.rationales.draw import distinct_inputs, draw_rationales, rationale_seed
from mmemb_r1.training.rationales.table import rationale_shard_path, read_rationales
from mmemb_r1.training.rationales.worker import Failure, Rationale, RationaleRequest, WorkerError


@dataclass
class Speaker:
    """Repeats its input and the seed, and keeps what it was asked. `fails` says why it can't, or `None`."""

    name: str = "speaker"
    num_samples: int = 2
    batch_size: int = 3
    word: str = "says"
    fails: Callable[[RationaleRequest], str | None] = lambda request: None
    silent: Callable[[RationaleRequest], bool] = lambda request: False
    before: Callable[[Sequence[RationaleRequest]], Any] = lambda requests: None
    asked: list[RationaleRequest] = field(default_factory=list)

    @property
    def definition(self) -> dict[str, Any]:
        return {"word": self.word}

    def draw(self, requests: Sequence[RationaleRequest]) -> list[list[Rationale | Failure]]:
        self.before(requests)
        self.asked += requests
        return [[] if self.silent(request) else self.answers(request) for request in requests]

    def answers(self, request: RationaleRequest) -> list[Rationale | Failure]:
        if reason := self.fails(request):
            return [Failure(reason)] * len(request.seeds)
        said = f"{self.word} {request.side} {request.input.get('text')}"
        return [Rationale(f"{said} {seed}", 4, "stop") for seed in request.seeds]


def text_pairs(count: int = 15) -> Dataset:
    """Every query is its own, three targets are shared."""
    rows = [
        {
            "pair_id": f"pair-{number}",
            "query": {"text": f"{number}?"},
            "target": {"text": "fizz" if number % 3 == 0 else "buzz" if number % 5 == 0 else "none"},
        }
        for number in range(1, count + 1)
    ]
    return Dataset.from_list(rows)


def rows_of(output: Path) -> list[dict[str, Any]]:
    return read_rationales(output).to_list()


def draw(output: Path, *workers: Speaker, pairs: Dataset | None = None, **options: Any) -> Any:
    options = {"shard_size": 4, "progress": False} | options
    return draw_rationales(text_pairs() if pairs is None else pairs, workers or [Speaker()], output, **options)


class TestTable:
    def test_every_pair_gets_its_samples_and_equal_inputs_are_asked_once(self, tmp_path):
        worker = Speaker(num_samples=3)
        summary = draw(tmp_path, worker)
        rows = rows_of(tmp_path)
        pairs = text_pairs()
        expected = {
            (pair["pair_id"], side, sample): f"says {side} {pair[side]['text']}"
            for pair in pairs
            for side in ("query", "target")
            for sample in range(3)
        }
        assert len(rows) == len(expected)
        for row in rows:
            assert row["text"] == f"{expected[row['pair_id'], row['side'], row['sample']]} {row['seed']}"
            assert (row["worker"], row["num_tokens"], row["finish_reason"], row["error"]) == (
                "speaker",
                4,
                "stop",
                None,
            )
        assert Counter(request.side for request in worker.asked) == {"query": 15, "target": 3}
        (said,) = summary.workers
        assert (said.rows, said.answers, said.drawn, said.skipped) == (90, 54, 5, 0)

    def test_seeds_depend_on_run_worker_side_input_and_sample(self):
        def seed(run=0, worker="a", side="query", digest=b"1", sample=0):
            return rationale_seed(run, worker, side, digest, sample)

        others = [seed(run=1), seed(worker="b"), seed(side="target"), seed(digest=b"2"), seed(sample=1)]
        assert seed() == seed()
        assert len({seed(), *others}) == 6
        assert all(0 <= value < 2**31 for value in others)

    def test_rationales_depend_on_neither_shards_nor_other_pairs_nor_batches(self, tmp_path):
        def texts(output):
            return {(row["pair_id"], row["side"], row["sample"]): row["text"] for row in rows_of(output)}

        draw(tmp_path / "whole")
        draw(tmp_path / "one", shard_size=100)
        draw(tmp_path / "single", Speaker(batch_size=1))
        draw(tmp_path / "turned", pairs=text_pairs().select([14, 3, 7]))
        assert texts(tmp_path / "whole") == texts(tmp_path / "one") == texts(tmp_path / "single")
        assert texts(tmp_path / "turned").items() <= texts(tmp_path / "whole").items()

    def test_one_side_alone(self, tmp_path):
        worker = Speaker()
        draw(tmp_path, worker, sides=["target"])
        assert {row["side"] for row in rows_of(tmp_path)} == {"target"}
        assert {request.side for request in worker.asked} == {"target"}

    def test_a_worker_may_have_nothing_to_say(self, tmp_path):
        draw(tmp_path, Speaker(silent=lambda request: request.side == "target"))
        assert Counter(row["side"] for row in rows_of(tmp_path)) == {"query": 30}
        draw(tmp_path / "mute", Speaker(silent=lambda request: True))
        assert rows_of(tmp_path / "mute") == []

    def test_text_that_is_no_utf8_is_mended(self, tmp_path):
        draw(tmp_path, Speaker(word="half \ud83c"))
        assert all(row["text"].startswith("half ? ") for row in rows_of(tmp_path))

    def test_a_broken_picture_is_the_workers_business(self, tmp_path):
        part = {"text": Value("string"), "image": List(ImageFeature())}
        features = Features({"pair_id": Value("string"), "query": part, "target": part})
        images = [[{"bytes": b"broken", "path": name}] for name in ("a.png", "b.png")] + [[{"path": "c.png"}]]
        rows = [
            {"pair_id": str(row), "query": {"image": image}, "target": {"text": "x"}}
            for row, image in enumerate(images)
        ]
        worker = Speaker(fails=lambda request: "can't be read" if request.side == "query" else None)
        draw(tmp_path, worker, pairs=Dataset.from_list(rows, features=features))
        shown = [request.input for request in worker.asked if request.side == "query"]
        assert shown == [
            {"image": [{"bytes": b"broken", "path": None}]},
            {"image": [{"bytes": None, "path": "c.png"}]},
        ]
        assert {row["error"] for row in rows_of(tmp_path) if row["side"] == "query"} == {"can't be read"}


def reachable(value: Any) -> list[Any]:
    """Everything that can be got at from a value, but for types and modules."""
    seen: dict[int, Any] = {}
    left = [value]
    while left:
        item = left.pop()
        if id(item) not in seen and not isinstance(item, type):
            seen[id(item)] = item
            left += gc.get_referents(item)
            left += [vars(item)] if hasattr(item, "__dict__") else []
    return list(seen.values())


def test_a_worker_sees_its_side_and_nothing_else(tmp_path):
    part = {"text": Value("string"), "image": List(ImageFeature()), "instruction": Value("string")}
    text = Value("string")
    features = Features(
        {"pair_id": text, "task": text, "query": part, "target": part, "negatives": List(part), "label": text}
    )
    rows = [
        {
            "pair_id": f"secret-pair-{row}",
            "task": "secret-task",
            "query": {"text": f"query-{row}", "image": [{"bytes": b"query-image", "path": "secret-file-name"}]},
            "target": {"text": f"target-{row}", "image": [{"bytes": b"target-image", "path": None}]},
            "negatives": [{"text": "secret-negative"}],
            "label": "secret-label",
        }
        for row in range(3)
    ]
    worker = Speaker()
    draw(tmp_path, worker, pairs=Dataset.from_list(rows, features=features))
    assert len(worker.asked) == 6
    for number, request in enumerate(worker.asked):
        other = "target" if request.side == "query" else "query"
        found = [repr(item) for item in reachable(request) if isinstance(item, str | bytes)]
        assert any(f"{request.side}-{number % 3}" in item for item in found)  # the search finds what is there
        assert any(f"{request.side}-image" in item for item in found)
        assert not [item for item in found if "secret" in item or f"{other}-" in item]
        assert {type(item) for item in reachable(request)} <= {
            RationaleRequest,
            dict,
            list,
            tuple,
            str,
            bytes,
            int,
            type(None),
        }


class TestResume:
    def test_a_second_run_asks_nothing(self, tmp_path):
        draw(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
        worker = Speaker()
        summary = draw(tmp_path, worker)
        assert worker.asked == []
        assert (summary.workers[0].drawn, summary.workers[0].skipped) == (0, 5)
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}

    def test_interrupted_anywhere_it_ends_the_same(self, tmp_path):
        dice = random.Random(0)
        workers = ("a", "b")

        def interrupt(requests):
            if dice.random() < 0.3:
                raise KeyboardInterrupt

        draw(tmp_path / "calm", *map(Speaker, workers))
        rounds, interrupted, asked = 0, 0, 0
        while rounds == interrupted:
            rounds += 1
            restless = [Speaker(name, before=interrupt) for name in workers]
            try:
                draw(tmp_path / "wild", *restless)
            except KeyboardInterrupt:
                interrupted += 1
            asked += sum(len(worker.asked) for worker in restless)
        assert interrupted >= 3
        assert asked <= 2 * 18 + 4 * interrupted  # each lost one shard of 4 inputs at most
        assert rows_of(tmp_path / "wild") == rows_of(tmp_path / "calm")

    def test_what_killed_runs_left_behind_does_not_disturb(self, tmp_path):
        draw(tmp_path / "calm")
        left = rationale_shard_path(tmp_path / "wild", "speaker", 1).with_name(".speaker-00001.parquet.abc123")
        left.mkdir(parents=True)
        (left / "speaker-00001.parquet").write_bytes(b"half a fi")
        draw(tmp_path / "wild")
        assert rows_of(tmp_path / "wild") == rows_of(tmp_path / "calm")

    def test_parts_make_the_whole(self, tmp_path):
        draw(tmp_path / "whole", Speaker("a"), Speaker("b"))
        for part in ((2, 2), (1, 2)):
            summary = draw(tmp_path / "parts", Speaker("a"), Speaker("b"), part=part)
            assert [worker.skipped for worker in summary.workers] == [0, 0]
        assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
        assert draw(tmp_path / "parts", part=(3, 9)).workers[0].drawn == 1  # parts may be cut differently at any time

    def test_a_worker_added_later_draws_alone(self, tmp_path):
        draw(tmp_path / "later", Speaker("a"))
        old, new = Speaker("a"), Speaker("b")
        draw(tmp_path / "later", old, new)
        assert (len(old.asked), len(new.asked)) == (0, 18)
        draw(tmp_path / "at-once", Speaker("a"), Speaker("b"))
        assert rows_of(tmp_path / "later") == rows_of(tmp_path / "at-once")

    def test_speed_may_change(self, tmp_path):
        draw(tmp_path, Speaker(batch_size=3))
        draw(tmp_path, Speaker(batch_size=5))

    def test_refuses_another_worker_of_the_same_name(self, tmp_path):
        draw(tmp_path)
        message = (
            r"the worker 'speaker' in .* was begun with other .*: definition\.word was 'says', is now 'sings' .*nam"
        )
        with pytest.raises(ValueError, match=message):
            draw(tmp_path, Speaker(word="sings"))
        with pytest.raises(ValueError, match="num_samples was 2, is now 3"):
            draw(tmp_path, Speaker(num_samples=3))

    @pytest.mark.parametrize(
        ("options", "difference"),
        [
            ({"seed": 1}, "seed was 0, is now 1"),
            ({"shard_size": 5}, "shard_size was 4, is now 5"),
            (
                {"sides": ["query"]},
                r"pairs\.target was '\w+', is now not set; sides was .'query', 'target'., is now .'query'.",
            ),
            (
                {"pairs": text_pairs(14)},
                r"pairs\.query was '\w+', is now '\w+'; pairs\.target was '\w+', is now '\w+' ",
            ),
        ],
    )
    def test_refuses_another_run(self, options, difference, tmp_path):
        draw(tmp_path)
        with pytest.raises(ValueError, match=rf"was begun with other settings or data: {difference}.*another folder"):
            draw(tmp_path, Speaker("new"), **options)

    def test_what_came_to_nothing_claims_nothing(self, tmp_path):
        def refuse(requests):
            raise WorkerError("worker 'speaker': there is no model 'modle'")

        with pytest.raises(WorkerError, match="no model 'modle'"):
            draw(tmp_path, Speaker(before=refuse), seed=1)
        draw(tmp_path, Speaker(word="sings"))  # mended


class TestFailures:
    @staticmethod
    def odd(request: RationaleRequest) -> str | None:
        number = request.input["text"].rstrip("?")
        return f"{number} is odd." if number.isdecimal() and int(number) % 2 else None

    def test_are_rows_and_the_others_go_on(self, tmp_path):
        summary = draw(tmp_path, Speaker(fails=self.odd))
        failed = [row for row in rows_of(tmp_path) if row["finish_reason"] == "error"]
        assert len(rows_of(tmp_path)) == 60
        assert {row["error"] for row in failed} == {f"{number} is odd." for number in range(1, 16, 2)}
        assert all(row["text"] is None and row["num_tokens"] is None for row in failed)
        assert summary.aborted is None
        assert summary.workers[0].failures["3 is odd."] == 2

    def test_the_summary_counts_reasons(self, tmp_path):
        always = Speaker("always", fails=lambda request: f"no {request.side}s")
        lines = list(draw(tmp_path, Speaker(fails=self.odd), always).lines(reasons=2))
        assert lines[0] == "speaker: 60 rows; shards: 5 drawn; 16 of 36 answers failed"
        assert lines[3] == "       and 6 other reasons"
        assert lines[5:] == ["    30 x no querys", "     6 x no targets"]

    def test_too_many_stop_the_run(self, tmp_path):
        summary = draw(tmp_path, Speaker(fails=self.odd), Speaker("later"), max_failures=5)
        assert summary.aborted == (
            "stopped: more answers failed than the 5 that are allowed. The last one, of the worker 'speaker': 5 is "
            "odd. Finished shards are kept."
        )
        assert list(summary.lines())[-1] == summary.aborted
        assert [worker.name for worker in summary.workers] == ["speaker"]
        assert len(rows_of(tmp_path)) == 8
        assert draw(tmp_path / "enough", Speaker(fails=self.odd), max_failures=16).aborted is None

    def test_are_asked_again_on_demand(self, tmp_path):
        draw(tmp_path / "fine")
        draw(tmp_path, Speaker(fails=self.odd))
        idle = Speaker()
        draw(tmp_path, idle)
        assert idle.asked == []
        mended = Speaker()
        summary = draw(tmp_path, mended, retry_failed=True)
        assert {request.input["text"] for request in mended.asked} == {f"{number}?" for number in range(1, 16, 2)}
        assert (summary.workers[0].drawn, summary.workers[0].skipped) == (4, 1)
        assert rows_of(tmp_path) == rows_of(tmp_path / "fine")


class TestBrokenWorkers:
    def test_a_bug_is_told_with_the_worker_and_the_shard(self, tmp_path):
        calls = []

        def third(requests):
            calls.append(requests)
            if len(calls) == 3:
                raise KeyError("text")

        with pytest.raises(WorkerError, match=r"the worker 'speaker' broke in its shard 1: KeyError: 'text'") as info:
            draw(tmp_path, Speaker(before=third))
        assert isinstance(info.value.__cause__, KeyError)
        assert len(rows_of(tmp_path)) == 8  # the shard before is there

    def test_answers_that_are_not_one_per_seed(self, tmp_path):
        class Short(Speaker):
            def answers(self, request):
                return super().answers(request)[:1]

        with pytest.raises(WorkerError, match=r"'speaker' gave 1 answers to an input; it has to give 2 to each"):
            draw(tmp_path, Short())

        class Forgetful(Speaker):
            def draw(self, requests):
                return super().draw(requests)[1:]

        with pytest.raises(WorkerError, match="'speaker' answered 2 of 3 inputs"):
            draw(tmp_path, Forgetful())

    @pytest.mark.parametrize(
        ("worker", "message"),
        [
            (Speaker("a/b"), "the name of a worker is 'a/b'; allowed: letters, digits"),
            (Speaker(".a"), "it begins with a letter or a digit"),
            (Speaker(num_samples=0), "the worker 'speaker' has num_samples=0; at least 1"),
            (Speaker(batch_size=0), "the worker 'speaker' has batch_size=0; at least 1"),
        ],
    )
    def test_refuses(self, worker, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            draw(tmp_path, worker)

    def test_refuses_a_pool_without_workers_or_with_two_of_a_name(self, tmp_path):
        with pytest.raises(ValueError, match="there are no workers"):
            draw_rationales(text_pairs(), [], tmp_path)
        with pytest.raises(ValueError, match="2 workers have the name 'speaker'"):
            draw(tmp_path, Speaker(), Speaker())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": []}, "sides: 'none' is not known; allowed: query, target"),
        ({"sides": ["query", "answer"]}, "sides: 'answer' is not known"),
        ({"shard_size": 0}, "shard_size is 0; at least 1"),
        ({"max_failures": -1}, "max_failures is -1; allowed: 0"),
        ({"part": (0, 2)}, "part is 0/2; allowed: i/n"),
        ({"part": (3, 2)}, "part is 3/2; allowed: i/n"),
        ({"pairs": text_pairs().remove_columns("pair_id")}, "has no column 'pair_id'"),
    ],
)
def test_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_plan_is_in_the_order_of_the_table():
    subjects = distinct_inputs(text_pairs(5))
    assert [(subject.side, subject.row) for subject in subjects] == [
        *(("query", row) for row in range(5)),
        *(("target", row) for row in (0, 2, 4)),
    ]
    assert subjects[5].pair_ids == ("pair-1", "pair-2", "pair-4")


def test_a_worker_lets_go_of_its_model_before_the_next_one_draws(tmp_path):
    events = []

    class Heavy(Speaker):
        def draw(self, requests):
            events.append(f"{self.name} draws")
            return super().draw(requests)

        def close(self):
            events.append(f"{self.name} closes")

    draw(tmp_path, Heavy("a", batch_size=99), Heavy("b", batch_size=99), shard_size=99)
    assert events == ["a draws", "a closes", "b draws", "b closes"]


class TestProgress:
    def test_a_bar_per_worker(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("mmemb_r1.progress.shows_bars", lambda: True)
        draw(tmp_path, Speaker("a"), Speaker("b"), progress=True)
        shown = capsys.readouterr().err
        assert shown.count("36/36") == 2
        assert shown.count("/s") == 2
        draw(tmp_path, Speaker("a"), progress=True)  # nothing to do, nothing to show
        assert "a" not in capsys.readouterr().err

    def test_lines_without_a_terminal(self, tmp_path, caplog, capsys, monkeypatch):
        with caplog.at_level(logging.INFO):
            draw(tmp_path / "quick", progress=None)
            assert not caplog.messages
            monkeypatch.setattr("mmemb_r1.progress.PERIOD", 0)
            draw(tmp_path / "slow", progress=None)
        assert capsys.readouterr().err == ""
        assert re.fullmatch(r"speaker: 18 of 36, [0-9.e+]+/s, 0:00:00 left", caplog.messages[8])
        assert caplog.messages[-1].startswith("speaker: 36 of 36")


def test_drawing_needs_no_torch():
    modules = "mmemb_r1.training.rationales.draw, mmemb_r1.training.rationales.pool"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "False"


@pytest.mark.slow
class TestProcesses:
    """SIGKILL at random moments, and two at once. What is asked is logged in a file, which outlives its process."""

    PAIRS, SHARD_SIZE, KILLS = 60, 4, 10

    def start(self, output: Path, part: str = "1/1") -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, __file__, output, part], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "drawing\n"
        return child

    def test_killed_at_random_it_ends_like_an_undisturbed_run(self, tmp_path):
        draw(tmp_path / "calm", *main_workers(), pairs=text_pairs(self.PAIRS), shard_size=self.SHARD_SIZE)
        calm, wild = rows_of(tmp_path / "calm"), tmp_path / "wild"
        there: set[Path] = set()
        killed = 0
        for _ in range(self.KILLS):
            child = self.start(wild)
            time.sleep(random.uniform(0, 0.3))
            child.kill()
            killed += child.wait() == -9
            now = set((wild / "shards").glob("*.parquet"))
            assert there <= now
            there = now
        assert killed == self.KILLS
        assert 0 < len(there) < len(list((tmp_path / "calm" / "shards").iterdir()))
        assert self.start(wild).wait() == 0

        rows = rows_of(wild)
        assert rows == calm
        assert len({(row["pair_id"], row["side"], row["worker"], row["sample"]) for row in rows}) == len(rows)
        asked = (tmp_path / "wild.asked").read_text(encoding="utf-8").splitlines()
        assert len(asked) <= len(set(asked)) + self.SHARD_SIZE * self.KILLS  # each lost one shard at most

    def test_two_at_once_make_the_whole(self, tmp_path):
        draw(tmp_path / "calm", *main_workers(), pairs=text_pairs(self.PAIRS), shard_size=self.SHARD_SIZE)
        children = [self.start(tmp_path / "parts", part) for part in ("1/2", "2/2")]
        assert [child.wait() for child in children] == [0, 0]
        assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "calm")


def main_workers(before: Callable[[Sequence[RationaleRequest]], Any] = lambda requests: None) -> list[Speaker]:
    return [Speaker(name, before=before, batch_size=2) for name in ("a", "b")]


def main(output: Path, part: str) -> None:
    """What `TestProcesses` kills."""

    def doze(requests):
        with output.with_suffix(".asked").open("a", encoding="utf-8") as log:
            log.writelines(f"{request.side} {request.input['text']} {request.seeds}\n" for request in requests)
        sys.stdout.write("drawing\n")
        sys.stdout.flush()
        time.sleep(random.uniform(0, 0.05))

    pairs = text_pairs(TestProcesses.PAIRS)
    first, count = map(int, part.split("/"))
    draw(output, *main_workers(doze), pairs=pairs, shard_size=TestProcesses.SHARD_SIZE, part=(first, count))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
