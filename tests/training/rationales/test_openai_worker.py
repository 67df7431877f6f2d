from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.chat_server import Reply, Server, closed_port, request, worker

from mmemb_r1 import servers
from mmemb_r1.training.rationales import openai_session
from mmemb_r1.training.rationales.worker import Failure, Rationale, WorkerError

pytestmark = pytest.mark.usefixtures("quick_retries")
KEY = "sk-secret-0123456789"


# what is asked


def test_each_rationale_is_one_request_with_its_own_seed(server: Server) -> None:
    drawn = worker(server).draw([request("a", (1, 2)), request("b", (3, 4))])
    assert drawn == [[Rationale(f"seed {seed}", 5, "stop") for seed in seeds] for seeds in ((1, 2), (3, 4))]
    asked = sorted((body["messages"][1]["content"], body["seed"]) for body in server.requests)
    assert asked == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
    assert all("n" not in body and "stream" not in body for body in server.requests)


def test_answers_are_in_order_however_late_they_come(server: Server) -> None:
    server.reply = lambda body, number: Reply(f"seed {body['seed']}", delay=0.2 / body["seed"])
    [drawn] = worker(server).draw([request(seeds=(1, 2, 3, 4))])
    assert [rationale.text for rationale in drawn] == ["seed 1", "seed 2", "seed 3", "seed 4"]


def test_sampling_options_are_sent(server: Server) -> None:
    worker(server, max_tokens=9, temperature=0.5, top_p=None, extra_body={"top_k": 5, "seed": None}).draw([request()])
    body = server.requests[0]
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_k"]) == ("m", 9, 0.5, 5)
    assert "top_p" not in body and "seed" not in body


def test_pictures_are_sent_as_data_urls(server: Server) -> None:
    worker(server).draw([request(image=Image.new("RGB", (4, 4)))])
    part = server.requests[0]["messages"][1]["content"][0]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")


def test_no_more_requests_run_at_once_than_are_allowed(server: Server) -> None:
    server.reply = lambda body, number: Reply(delay=0.05)
    worker(server, concurrency=3).draw([request(str(index)) for index in range(6)])
    assert len(server.requests) == 12
    assert server.most_active == 3


def test_nothing_asked_nothing_said(server: Server) -> None:
    assert worker(server).draw([]) == []
    assert server.requests == []


def test_it_draws_inside_a_running_loop(server: Server) -> None:
    async def notebook() -> list:
        return worker(server).draw([request()])

    assert len(asyncio.run(notebook())[0]) == 2


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(worker(server).draw([request()])[0][0], Rationale)


def test_any_other_server_is_asked_through_the_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
    assert isinstance(worker("http://server.invalid/v1").draw([request()])[0][0], Rationale)


# what can be mended by trying again


def test_a_rate_limit_is_waited_for(server: Server) -> None:
    server.reply = lambda body, number: (
        Reply("slow down", 429, headers={"retry-after": "0.4"}) if number == 1 else Reply()
    )
    assert isinstance(worker(server).draw([request(seeds=(1,))])[0][0], Rationale)
    first, second = server.times
    assert second - first >= 0.4


def test_waits_that_the_client_finds_too_long_are_waited_for_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def short_sleep(seconds: float) -> None:
        waits.append(seconds)
        await sleep(min(seconds, 0.01))

    monkeypatch.setattr(openai_session.asyncio, "sleep", short_sleep)
    server.reply = lambda body, number: (
        Reply("daily limit", 429, headers={"retry-after": "3600"}) if number == 1 else Reply()
    )
    assert isinstance(worker(server).draw([request(seeds=(1,))])[0][0], Rationale)
    assert 3600 in waits
    server.reply = lambda body, number: Reply("daily limit", 429, headers={"retry-after": "3600"})
    assert worker(server).draw([request(seeds=(1,))]) == [[Failure("the server answered 429: daily limit")]]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_error_is_tried_again(server: Server, status: int) -> None:
    server.reply = lambda body, number: Reply("hm", status) if number <= 2 else Reply()
    assert isinstance(worker(server).draw([request(seeds=(1,))])[0][0], Rationale)


def test_a_dropped_connection_is_tried_again(server: Server) -> None:
    server.reply = lambda body, number: Reply(drop=number <= 2)
    assert isinstance(worker(server).draw([request(seeds=(1,))])[0][0], Rationale)


@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_server_that_is_started_again_is_waited_for(max_retries: int, caplog: pytest.LogCaptureFixture) -> None:
    port, started = closed_port(), []
    timer = threading.Timer(1.5, lambda: started.append(Server(port)))
    timer.start()
    try:
        url = f"http://127.0.0.1:{port}/v1"
        drawn = worker(url, max_retries=max_retries, start_patience=20).draw([request("a"), request("b")])
    finally:
        timer.join()
        for server in started:
            server.close()
    assert [len([r for r in answers if isinstance(r, Rationale)]) for answers in drawn] == [2, 2]
    assert f"{url} is away" in caplog.text


def test_a_gateway_without_a_server_behind_it_is_waited_for(server: Server) -> None:
    server.reply = lambda body, number: Reply("bad gateway", 502) if number <= 2 else Reply()
    drawn = worker(server, max_retries=0, patience=20, concurrency=1).draw([request(seeds=(1,))])
    assert isinstance(drawn[0][0], Rationale)


# what one input causes


def test_one_failed_sample_leaves_the_others(server: Server) -> None:
    server.reply = lambda body, number: Reply("no", 500) if body["seed"] == 2 else Reply(f"seed {body['seed']}")
    [drawn] = worker(server).draw([request(seeds=(1, 2, 3))])
    assert drawn == [
        Rationale("seed 1", 5, "stop"),
        Failure("the server answered 500: no"),
        Rationale("seed 3", 5, "stop"),
    ]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_input_is_not_asked_again(server: Server, status: int) -> None:
    server.reply = lambda body, number: Reply("too   large", status)
    assert worker(server).draw([request(seeds=(1,))]) == [[Failure(f"the server answered {status}: too large")]]
    assert len(server.requests) == 1


def test_the_message_of_a_server_without_json_is_told(server: Server) -> None:
    server.reply = lambda body, number: Reply(status=400, body=b"<html>Bad", headers={"content-type": "text/html"})
    assert worker(server).draw([request(seeds=(1,))]) == [[Failure("the server answered 400: <html>Bad")]]


def test_a_server_that_never_comes_to_an_end_is_a_failure(server: Server) -> None:
    server.reply = lambda body, number: Reply(delay=5)
    [[failure]] = worker(server, timeout=0.2, max_retries=1).draw([request(seeds=(1,))])
    assert failure == Failure("no answer within timeout=0.2 seconds, in 2 tries.")


def test_an_empty_answer_is_a_failure(server: Server) -> None:
    server.reply = lambda body, number: Reply("")
    [[failure]] = worker(server).draw([request(seeds=(1,))])
    assert "empty" in failure.reason


def test_an_input_that_breaks_the_connection_is_a_failure_while_others_are_answered(server: Server) -> None:
    def reply(body: dict[str, Any], number: int) -> Reply:
        return Reply(drop=body["messages"][1]["content"] == "poison", delay=0.05)

    server.reply = reply
    poisoned, *others = worker(server, max_retries=0, patience=0.2, concurrency=2).draw(
        [request("poison", (1,)), *(request(str(index), (1,)) for index in range(20))]
    )
    assert isinstance(poisoned[0], Failure) and "the connection broke each time" in poisoned[0].reason
    assert all(isinstance(answer[0], Rationale) for answer in others)


def test_an_unreadable_picture_is_not_sent(server: Server) -> None:
    broken, fine = worker(server).draw([request(image=b"no picture"), request(seeds=(3,))])
    assert len(broken) == 2
    assert all("its image of 10 bytes can't be read" in failure.reason for failure in broken)
    assert fine == [Rationale("seed 3", 5, "stop")]
    assert len(server.requests) == 1


# what no input could survive


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_run_and_is_never_shown(
    server: Server, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    server.reply = lambda body, number: Reply(f"Incorrect API key provided: {KEY}", status)
    drawer = worker(server, api_key_env="SOME_KEY")
    with pytest.raises(
        WorkerError, match=rf"Worker 'w': .* refuses the key \({status}.*`api_key_env` is 'SOME_KEY'"
    ) as error:
        drawer.draw([request("a"), request("b")])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    shown = [str(error.value), "".join(traceback.format_exception(error.value)), caplog.text, repr(drawer)]
    assert not any(KEY in text for text in [*shown, json.dumps(drawer.definition)])


def test_a_key_that_a_server_repeats_is_not_in_failures_either(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    server.reply = lambda body, number: Reply(f"bad request of {KEY}", 400)
    drawn = worker(server, api_key_env="SOME_KEY").draw([request(seeds=(1,))])
    assert drawn == [[Failure("the server answered 400: bad request of ***")]]
    server.reply = lambda body, number: Reply(body=json.dumps({"error": f"no more for {KEY}"}).encode())
    drawn = worker(server, api_key_env="SOME_KEY").draw([request(seeds=(1,))])
    assert drawn == [[Failure("the server answered with an error: no more for ***")]]


def test_without_a_key_none_of_the_environments_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    worker(server).draw([request()])
    assert not any(KEY in value for headers in server.headers for value in headers.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "SOME_KEY of `api_key_env` is not set"), ("", "is not set"), ("a\nb", "holds no usable key")],
)
def test_a_key_that_is_not_there_stops_the_run(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(WorkerError, match=message):
        worker(server, api_key_env="SOME_KEY").draw([request()])
    assert server.requests == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply("no such model", 404), r"knows no such path or model \(404: no such model\).*ends in /v1.*'m'"),
        (Reply("", 405), "knows no such path or model"),
        (Reply("pay first", 402), r"no credit .*\(402: pay first\)"),
        (
            Reply(status=429, body=b'{"error": {"message": "spent", "code": "insufficient_quota"}}'),
            r"no credit .*\(429: spent\)",
        ),
        (
            Reply(body=b"<!doctype html><title>Welcome</title>", headers={"content-type": "text/html"}),
            "answered with text/html that begins with '<!doctype html><title>Welcome</title>'.*Correct `base_url`",
        ),
        (Reply(body=b'{"object": "list"}'), "answered with application/json that begins with .*list.*no chat compl"),
        (Reply(body=b"data: {}\n\n", headers={"content-type": "text/event-stream"}), "with text/event-stream"),
    ],
    ids=["404", "405", "402", "quota", "html", "json", "stream"],
)
def test_a_server_that_can_not_do_it_at_all_stops_the_run(server: Server, reply: Reply, message: str) -> None:
    server.reply = lambda body, number: reply
    with pytest.raises(WorkerError, match=message) as error:
        worker(server).draw([request(str(index)) for index in range(40)])
    assert str(error.value).startswith("Worker 'w': ")
    assert len(server.requests) < 80  # the rest was not even asked


def test_a_server_that_never_answered_stops_the_run_before_anything_is_sent() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(WorkerError, match=f"Worker 'w': {url} can't be reached .* not once .*`start_patience` says"):
        worker(url, patience=1e6, max_retries=1000, start_patience=0.2).draw([request("a"), request("b")])


def test_a_server_that_goes_away_and_stays_away_stops_the_run(server: Server) -> None:
    server.reply = lambda body, number: Reply("gone", 502) if number > 1 else Reply()
    with pytest.raises(WorkerError, match=f"Worker 'w': {server.url} can't be reached .*`base_url`; `patience` says"):
        worker(server, patience=0.3, concurrency=1).draw([request("a"), request("b")])


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Interrupts are heard, also where the tests run in the background: there a shell has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_is_obeyed_at_once(server: Server) -> None:
    server.reply = lambda body, number: Reply(delay=20)
    timer = threading.Timer(0.7, lambda: os.kill(os.getpid(), 2))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        worker(server).draw([request(str(index)) for index in range(30)])
    assert time.monotonic() - began < 5


def test_without_the_client_the_error_names_the_extra(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'mmemb-r1\[openai\]'"):
        worker(server).draw([request()])


# the pool file


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model", "", "is ''; allowed: the name of a model"),
        ("base_url", "localhost:8000/v1", "is 'localhost:8000/v1'; allowed: an address that begins with http"),
        ("base_url", "http://", "begins with http"),
        ("base_url", "http://[::1/v1", "begins with http"),
        ("base_url", "http://host:port/v1", "begins with http"),
        ("base_url", None, "begins with http"),
        ("num_samples", 0, "is 0; allowed: a whole number from 1 on"),
        ("concurrency", 1.5, "is 1.5; allowed: a whole number"),
        ("batch_size", True, "is True; allowed: a whole number"),
        ("max_tokens", "many", "is 'many'; allowed: a whole number"),
        ("num_video_frames", -1, "is -1; allowed: a whole number"),
        ("max_retries", -1, "is -1; allowed: a whole number from 0 on"),
        ("timeout", 0, "is 0; allowed: seconds, more than 0"),
        ("timeout", "2m", "is '2m'; allowed: seconds"),
        ("patience", -1, "is -1; allowed: seconds, 0 or more"),
        ("start_patience", -1, "is -1; allowed: seconds, 0 or more"),
        ("upload_once", "no", "is 'no'; allowed: true or false"),
        ("temperature", 3, "is 3; allowed: 0 to 2, or null"),
        ("top_p", "all", "is 'all'; allowed: 0 to 1, or null"),
        ("image_format", "gif", "is 'gif'; allowed: png or jpeg"),
        ("extra_body", ["top_k"], "allowed: fields of a request, but not model, messages, stream, n"),
        ("extra_body", {"stream": True}, "allowed: fields of a request, but not model, messages, stream, n"),
        ("extra_body", {"seed": 1}, "stream, n, and no seed but null"),
        ("style", "verbose", "can't be used. There is no style 'verbose'"),
    ],
)
def test_a_bad_key_is_refused_before_anything_is_asked(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^Worker 'w': `{key}` ") as error:
        worker("http://127.0.0.1:1/v1", **{key: value})
    assert allowed in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api_key_env", KEY),
        ("api_key_env", "hf_secret0123456789"),
        ("base_url", "https://me:hunter2@host/v1"),
        ("base_url", "https://host/v1?key=hunter2"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"`{key}`") as error:
        worker("http://127.0.0.1:1/v1", **{key: value})
    assert not any(secret in str(error.value) for secret in (KEY, "secret", "hunter2"))


def test_the_definition_holds_what_determines_the_rationales_and_nothing_else(tmp_path: Path) -> None:
    plain = worker("http://127.0.0.1:1/v1").definition
    assert json.loads(json.dumps(plain)) == plain
    moved = worker(
        "http://127.0.0.1:2/v1", concurrency=1, timeout=1, max_retries=0, patience=9, batch_size=1, api_key_env="KEY"
    )
    assert moved.definition == plain
    (tmp_path / "own.txt").write_text("# rationale: answer\nBe terse.")
    others = (
        {"model": "n"},
        {"temperature": 0},
        {"max_tokens": 5},
        {"extra_body": {"top_k": 1}},
        {"style": "thinking"},
        {"upload_once": False},
    )
    for change in (*others, {"style": str(tmp_path / "own.txt")}):
        assert worker("http://127.0.0.1:1/v1", **change).definition != plain


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
    ],
)
def test_retry_after_may_be_a_date_or_nonsense(headers: dict[str, str], seconds: float | None) -> None:
    waits = servers.retry_after(headers)
    assert waits == seconds if seconds is not None else waits is None or waits < 0
