"""A server whose model an engine runs gives the vectors of `encode`, whatever fails and whatever comes late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.engines.torch_engine import REFUSED, TorchEngine
from tests.engines.vllm_double import VllmDouble
from tests.serving.conftest import data_url, running, wait_until
from tests.serving.fake_executor import job

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.engines import EngineError, HttpEngine
from mmemb_r1.engines.served import save_served
from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.serving.engine_executor import EngineExecutor
from mmemb_r1.serving.executor import Answer, Row
from mmemb_r1.serving.job_errors import ExecutorError
from mmemb_r1.serving.opening import open_model
from mmemb_r1.serving.running import make_server
from mmemb_r1.serving.scheduler import Scheduler
from mmemb_r1.serving.settings import ServerSettings

CLOSE = {"atol": 2e-5, "rtol": 0}  # nothing is computed by the engine as in the model: no cache, no padding
TEXTS = ["Lima", "A red flag. " * 4, "what is the capital of Peru?", "x"]


class Watched(TorchEngine):
    """Work on one call after the other, and do what a test wants before: `before(name, prompts)`."""

    def __init__(self, model: MMEmbR1, concurrency: int) -> None:
        super().__init__(model)
        self.concurrency, self.lock = concurrency, threading.Lock()
        self.before: Callable[[str, Sequence[Any]], None] = lambda name, prompts: None
        self.sizes: list[int] = []  # of calls for rationales
        self.closed = False

    def states(self, prompts):
        self.before("states", prompts)
        with self.lock:
            return super().states(prompts)

    def rationales(self, prompts, max_tokens):
        self.before("rationales", prompts)
        with self.lock:
            self.sizes.append(len(prompts))
            return super().rationales(prompts, max_tokens)

    def close(self):
        self.closed = True
        super().close()


class Held:
    """Hold calls for rationales up while it is shut."""

    def __init__(self) -> None:
        self.open, self.arrived = threading.Event(), threading.Event()

    def __call__(self, name, prompts):
        if name == "rationales" and not self.open.is_set():
            self.arrived.set()
            assert self.open.wait(60)


@pytest.fixture(params=[1, 4], ids=["one-call", "four-calls"])
def engine(request, model):
    return Watched(model, request.param)


@pytest.fixture
def served(model, engine):
    made = MMEmbR1.from_model(model[0].model, model.processor)
    made.engine = engine
    return made


@pytest.fixture
def server(served):
    with running(served) as made:
        yield made


def always(tokens=6, rounds=1, **more):
    return {"reasoning": "always", "max_reasoning_tokens": tokens, "max_reasoning_rounds": rounds, **more}


def row(text, rounds=1):
    return Row({"text": text}, ReasoningOptions("always", 0.5, 6, rounds, Sampling()))


def holds(model, prompt, text):
    return text in model.tokenizer.decode(list(prompt.token_ids))


class TestVectors:
    def test_requests_of_different_options_stand_beside_each_other(self, server, model):
        options = [
            {"reasoning": "never"},
            always(tokens=3, rounds=2),
            always(tokens=9),
            {"reasoning": "auto", "gate_threshold": 0.3},
            {"reasoning": "auto", "gate_threshold": 0.6, "max_reasoning_rounds": 3},
        ]
        wanted = [model.encode_query(TEXTS, **given) for given in options]
        with ThreadPoolExecutor(20) as pool:
            calls = [
                (at, place, pool.submit(server.vectors, [text], input_type="query", **given))
                for place, text in enumerate(TEXTS)
                for at, given in enumerate(options)
            ]
            for at, place, call in calls:
                np.testing.assert_allclose(call.result()[0], wanted[at][place], **CLOSE)

    def test_what_is_explained_and_counted_is_that_of_the_model(self, server, model):
        red, blue = data_url("red"), data_url("blue", 60)
        inputs = ["Lima", {"image": red}, {"text": "b", "image": [red, blue], "instruction": "Find."}, "x"]
        given = {"reasoning": "auto", "gate_threshold": 0.45, "max_reasoning_rounds": 2}
        body = server.embed(inputs, input_type="query", explain=True, **given)
        wanted = model.explain(inputs, task="query", **given)
        for item, explained in zip(body["data"], wanted, strict=True):
            np.testing.assert_allclose(item["embedding"], explained.pop("embedding"), **CLOSE)
            assert item["explanation"] == {**explained, "gate_prob": pytest.approx(explained["gate_prob"], abs=1e-4)}
        assert {item["explanation"]["reasoned"] for item in body["data"]} == {True, False}
        with running(model) as local:
            assert local.embed(inputs, input_type="query", **given)["usage"] == body["usage"]

    def test_videos_are_refused(self, server):
        error = server.error(400, input=["a", {"video": [data_url("red"), data_url("blue")]}])
        assert error["param"] == "input[1]" and "holds a video, which engines don't take" in error["message"]


class TestThatStop:
    def test_a_latency_budget_gives_the_direct_vector(self, server, model, engine):
        engine.before = held = Held()
        body = server.embed(["Lima"], max_latency_ms=300, explain=True, **always())
        assert body["data"][0]["stopped"] == "max_latency_ms" and not body["data"][0]["explanation"]["reasoned"]
        np.testing.assert_allclose(body["data"][0]["embedding"], model.encode(["Lima"], reasoning="never")[0], **CLOSE)
        np.testing.assert_allclose(
            server.vectors(["x"], reasoning="never"), model.encode(["x"], reasoning="never"), **CLOSE
        )
        held.open.set()
        np.testing.assert_allclose(server.vectors(["Lima"], **always()), model.encode(["Lima"], **always()), **CLOSE)

    def test_rows_that_nobody_waits_for(self, server, model, engine):
        engine.before = held = Held()
        gone = [job(row(f"gone {number}")) for number in range(6)]
        for one in gone:
            server.scheduler.submit(one)
        assert held.arrived.wait(60)
        wait_until(lambda: server.scheduler.thinking == 6)
        for one in gone:
            assert one.future.cancel()
        wait_until(lambda: server.scheduler.thinking == 0)
        held.open.set()
        np.testing.assert_allclose(server.vectors(TEXTS, **always()), model.encode(TEXTS, **always()), **CLOSE)
        assert not server.scheduler._tickets


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status"),
        [(lambda place: RuntimeError("a bug"), 500), (lambda place: InputError(place, "it is too long."), 400)],
        ids=["failure", "refusal"],
    )
    def test_of_a_rationale_are_those_of_its_row(self, server, model, engine, error, status):
        held = Held()

        def fail(name, prompts):
            held(name, prompts)
            for place, prompt in enumerate(prompts if name == "rationales" else ()):
                if holds(model, prompt, "bad"):
                    raise error(place)

        engine.before = fail
        texts = ["Lima", "bad", "x", "Peru"]
        with ThreadPoolExecutor(4) as pool:
            body = [{"model": "tiny", "input": text, **always(rounds=2)} for text in texts]
            calls = [pool.submit(server.ask, body=one) for one in body]
            wait_until(lambda: server.scheduler.thinking == 4)
            held.open.set()
            answers = [call.result() for call in calls]
        assert [answer[0] for answer in answers] == [200, status, 200, 200]
        assert status == 500 or "it is too long." in answers[1][1]["error"]["message"]
        wanted = model.encode(texts, **always(rounds=2))
        for place in (0, 2, 3):
            np.testing.assert_allclose(answers[place][1]["data"][0]["embedding"], wanted[place], **CLOSE)
        assert server.ask("/ready")[0] == 200

    def test_a_prompt_that_is_refused_leaves_the_others(self, server, model):
        error = server.error(400, input=["a", "b", f"please {REFUSED}"], reasoning="never")
        assert error["param"] == "input[2]" and "it is refused." in error["message"]
        jobs = [job(row(text)) for text in ("Lima", f"please {REFUSED}", "x")]
        for one in jobs:
            server.scheduler.submit(one)
        for one, wanted in zip((jobs[0], jobs[2]), model.encode(["Lima", "x"], **always()), strict=True):
            np.testing.assert_allclose(one.future.result(60)[0].embedding, wanted, **CLOSE)

    def test_an_engine_that_is_away_is_not_ready_and_one_that_comes_back_is(self, server, model, engine):
        def away(name, prompts):
            raise EngineError("it is away")

        engine.before = away
        for number in range(3):
            assert server.error(500, input=f"text {number}")["code"] == "executor_error"
        assert server.ask("/ready")[0] == server.ask("/health")[0] == 503
        engine.before = lambda name, prompts: None
        np.testing.assert_allclose(server.vectors(TEXTS, **always()), model.encode(TEXTS, **always()), **CLOSE)
        wait_until(lambda: server.ask("/ready")[0] == 200)


@pytest.fixture
def executor(served):
    made = EngineExecutor(served, max_input_tokens=1000)
    yield made
    made.close()
    assert not any(writer.is_alive() for writer in made._writers)


def read(executor, *rows):
    for one, prepared in zip(rows, executor.prepare(rows), strict=True):
        one.prepared = prepared
    return executor.read(rows)


def stepped(executor):
    outcomes = []
    wait_until(lambda: outcomes.extend(executor.step()) or not executor.thinking)
    return dict(outcomes)


def test_what_comes_from_before_a_reset_is_dropped(executor, engine, model):
    engine.before = held = Held()
    rows = [row(text) for text in TEXTS]
    assert read(executor, *rows) == []
    assert held.arrived.wait(60) and executor.thinking == 4
    executor.reset()
    assert executor.thinking == 0 and read(executor, rows[0], rows[2]) == []
    held.open.set()
    answers = stepped(executor)
    assert answers.keys() == {rows[0], rows[2]}
    assert engine.sizes[0] == (4 if engine.concurrency == 1 else 1)  # one call for all, or one for each
    wanted = model.encode([TEXTS[0], TEXTS[2]], **always())
    np.testing.assert_allclose([answers[rows[0]].embedding, answers[rows[2]].embedding], wanted, **CLOSE)


def test_a_row_that_is_stopped_in_its_second_round_has_the_vector_after_the_first(executor, engine, model):
    held = Held()
    engine.before = lambda name, prompts: engine.sizes and held(name, prompts)
    one = row("Lima", rounds=2)
    read(executor, one)
    assert held.arrived.wait(60)
    ((stopped, answer),) = executor.stop([one])
    assert stopped is one and answer.rounds == 1 and answer.stopped and executor.thinking == 0
    np.testing.assert_allclose(answer.embedding, model.encode(["Lima"], **always())[0], **CLOSE)
    held.open.set()
    wait_until(lambda: len(engine.sizes) == 2)
    assert executor.step() == [] and executor.thinking == 0


def test_a_row_that_is_done_when_it_is_stopped_was_not_stopped(executor, engine):
    engine.before = held = Held()
    held.open.set()
    one = row("Lima")
    read(executor, one)
    wait_until(lambda: one in executor._back)
    ((stopped, answer),) = executor.stop([one])
    assert stopped is one and isinstance(answer, Answer) and answer.rounds == 1 and not answer.stopped
    assert executor.thinking == 0


def test_room_and_limits(served, engine):
    executor = EngineExecutor(served, max_input_tokens=30, decode_batch_size=3)
    try:
        (long, large) = executor.prepare(
            [row("word " * 200), Row({"image": [data_url()] * 40}, row("").options, has_media=True)]
        )
        assert "this server reads 30 of one input" in str(long) and "this server reads 30" in str(large)
        engine.before = held = Held()
        read(executor, row("a"), row("b"))
        assert executor.room == 1 and executor.thinking == 2
        held.open.set()
        stepped(executor)
        assert executor.room == 3
    finally:
        executor.close()
    served.engine = None
    with pytest.raises(ValueError, match="has no engine"):
        EngineExecutor(served, max_input_tokens=30)


def test_a_scheduler_that_is_closed_ends_the_writers(served, engine):
    executor = EngineExecutor(served, max_input_tokens=1000)
    scheduler = Scheduler(executor)
    one = job(row("Lima"))
    scheduler.submit(one)
    assert scheduler.close(60)
    assert one.future.result(0)[0].rounds == 1
    assert not any(writer.is_alive() for writer in executor._writers) and not engine.closed


class TestServers:
    """What `HttpEngine` does with servers that fail, behind the scheduler."""

    @pytest.fixture
    def over_http(self, request, model):
        made, double = MMEmbR1.from_model(model[0].model, model.processor), VllmDouble(model)
        made.engine = HttpEngine(double.url, double.url, concurrency=4, patience=request.param)
        scheduler = Scheduler(EngineExecutor(made, max_input_tokens=1000))
        yield scheduler, double
        scheduler.close(60)
        made.engine.close()
        double.close()

    @pytest.mark.parametrize("over_http", [60.0], indirect=True)
    def test_broken_connections_lose_nothing(self, over_http, model):
        scheduler, double = over_http
        double.fault = lambda path, body, number: (0, b"") if number % 9 == 0 else None
        texts = [f"text {number}" for number in range(12)]
        jobs = [job(row(text, rounds=2)) for text in texts]
        for one in jobs:
            scheduler.submit(one)
        found = [one.future.result(60)[0].embedding for one in jobs]
        np.testing.assert_allclose(found, model.encode(texts, **always(rounds=2)), **CLOSE)
        assert len(double.requests) > 40  # those that broke were sent again

    @pytest.mark.parametrize("over_http", [0.6], indirect=True)
    @pytest.mark.parametrize("path", ["/pooling", "/v1/completions"])
    def test_a_server_that_stays_away_fails_what_waits_and_comes_back(self, over_http, model, path):
        scheduler, double = over_http
        double.fault = lambda asked, body, number: (503, {}) if asked == path else None
        jobs = [job(row(text)) for text in TEXTS]
        for one in jobs:
            scheduler.submit(one)
        for one in jobs:
            with pytest.raises(ExecutorError):
                one.future.result(60)
        wait_until(lambda: not scheduler.is_healthy and not scheduler.thinking)
        double.fault = lambda asked, body, number: None
        scheduler.submit(again := job(row("Lima")))
        np.testing.assert_allclose(
            again.future.result(60)[0].embedding, model.encode(["Lima"], **always())[0], **CLOSE
        )
        wait_until(lambda: scheduler.is_healthy)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save_served(model, folder)
    return folder


class TestOpening:
    def test_the_command_serves_an_exported_folder(self, exported, model, monkeypatch):
        made, engine = [], Watched(model, 2)
        monkeypatch.setattr("mmemb_r1.engines.choice.engine_of", lambda form, folder, **options: engine)
        monkeypatch.setattr("mmemb_r1.serving.running.serve", made.append)
        given = ["--engine", "http://localhost:1,http://localhost:2", "--engine-options", "patience=3"]
        assert main(["serve", str(exported), "--device", "cpu", "--port", "0", *given]) == 0
        executor = made[0].config.app.state.scheduler.executor
        assert isinstance(executor, EngineExecutor) and executor.engine is engine and engine.closed
        assert ("states", 1) in engine.asked and ("rationales", 1) in engine.asked  # it embedded something
        made[0].config.app.state.scheduler.close(20)

    def test_an_exported_folder_needs_an_engine(self, exported, capsys):
        assert main(["serve", str(exported), "--device", "cpu"]) == 2
        assert "was exported for vLLM, and is loaded with an engine" in capsys.readouterr().err

    def test_what_the_engine_can_not_run_is_refused(self, exported, tiny_checkpoint, model):
        engine = HttpEngine("http://localhost:1", "http://localhost:2")
        with pytest.raises(ValueError, match="max_image_tokens=20.*exported with None"):
            open_model(str(exported), device="cpu", engine=engine, max_image_tokens=20)
        (whole := open_model(str(tiny_checkpoint), device="cpu", engine=engine)).engine.close()
        assert whole.engine is engine

    def test_an_engine_that_does_not_write_is_refused(self, served, model):
        served.engine = HttpEngine("http://localhost:1")
        with pytest.raises(ValueError, match="no server that writes rationales"):
            make_server(served, "tiny", ServerSettings(), port=0)
        served.engine = Watched(model, 2)

        def refuse(name, prompts):
            raise InputError(0, "pictures are too much for it.")

        served.engine.before = refuse
        with pytest.raises(ValueError, match="is not served.*too much for it"):
            make_server(served, "tiny", ServerSettings(), port=0)
