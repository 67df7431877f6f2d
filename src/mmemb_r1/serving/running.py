"""Run a server until it is told to stop."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from mmemb_r1.encoding import DECODED_PER_READ
from mmemb_r1.modeling.decoding_mmemb_r1 import Sampling
from mmemb_r1.modeling.options_mmemb_r1 import context_length, resolve_reasoning
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReasoningOptions
from mmemb_r1.sentence_transformers import MMEmbR1
from mmemb_r1.serving.app import build_app
from mmemb_r1.serving.connection import protocol_of
from mmemb_r1.serving.engine_executor import EngineExecutor
from mmemb_r1.serving.executor import Executor, Row
from mmemb_r1.serving.job_errors import ExecutorError, RefusedError
from mmemb_r1.serving.local import LocalExecutor
from mmemb_r1.serving.metrics import Metrics
from mmemb_r1.serving.scheduler import Job, Scheduler
from mmemb_r1.serving.service import EmbeddingService
from mmemb_r1.serving.settings import ServerSettings

logger = logging.getLogger("mmemb_r1.serving")

# Threads that parse requests hold the interpreter no longer than this while the executor waits for it
SWITCH_SECONDS = 0.0005
WARM_UP_TOKENS = 4


class Server(uvicorn.Server):
    """Serve an application; after SIGTERM or SIGINT it takes no more requests, and finishes those that it has."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = getattr(self.config.app, "state", None)
        if app is not None:
            app.is_stopping = True
        logger.info("stopping", extra={"facts": {"signal": sig}})
        super().handle_exit(sig, frame)


def executor_of(model: MMEmbR1, settings: ServerSettings) -> Executor:
    """
    Make what runs a model: its engine, if it has one, or this process.

    Raises:
        ValueError, EngineError: as [`EngineExecutor`].
    """
    options = {
        "max_input_tokens": min(context_length(model[0].model.config), settings.max_batch_tokens),
        "decode_batch_size": settings.decode_batch_size or DECODED_PER_READ * settings.batch_size,
        "allow_remote_media": settings.allow_remote_media,
    }
    if model.engine is not None:
        if settings.prepare_processes is not None:
            raise ValueError(
                f"prepare_processes={settings.prepare_processes} is for a model that runs in this process, and this "
                "one has an engine; leave one of the two out."
            )
        return EngineExecutor(model, **options)
    return LocalExecutor(model, prepare_processes=settings.prepare_processes, **options)


def make_app(
    model: MMEmbR1,
    name: str,
    settings: ServerSettings,
    *,
    keys: Sequence[str] = (),
    executor: Executor | None = None,
) -> FastAPI:
    """
    Make the application, for whatever serves it; the model has embedded something by then.

    Args:
        model, name, settings, keys, executor: as for [`make_server`], whose errors these are.
    """
    executor = executor or executor_of(model, settings)
    metrics = Metrics()
    scheduler = Scheduler(
        executor,
        max_waiting=settings.max_waiting,
        batch_size=settings.batch_size,
        max_batch_tokens=settings.max_batch_tokens,
        workers=settings.workers,
        observer=metrics,
    )
    try:
        warm_up(model, scheduler)
    except BaseException:
        scheduler.close(0)
        raise
    metrics.follow(scheduler)
    service = EmbeddingService(model, executor, name, settings)
    return build_app(service, scheduler, metrics, keys)


def make_server(
    model: MMEmbR1,
    name: str,
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Sequence[str] = (),
    executor: Executor | None = None,
) -> Server:
    """
    Make a server, whose `run()` serves until a signal comes.

    Args:
        model: the [`MMEmbR1`].
        name: by which requests call it.
        settings: the limits.
        host, port: where it listens; port 0 is a free one.
        keys: of the API; none: everybody may use it.
        executor: runs the model. Default: its engine, or this process, see [`executor_of`].

    Raises:
        ValueError: if the model gives vectors that are no numbers, fails over a built-in input or refuses it, or its
            engine can't write rationales.
        EngineError: if its engine can't start, can't be reached, or runs another model.
    """
    config = uvicorn.Config(
        make_app(model, name, settings, keys=keys, executor=executor),
        host=host,
        port=port,
        http=protocol_of(settings),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(settings.idle_seconds),
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return Server(config)


def warm_up(model: MMEmbR1, scheduler: Scheduler) -> None:
    """Embed a text and a picture, direct and reasoned: what is not loaded or broken shows before requests come."""
    config = model[0].model.config
    rows: list[Row] = []
    for reasoning in ("never", "always"):
        given = {"reasoning": reasoning, "max_reasoning_tokens": WARM_UP_TOKENS, "max_reasoning_rounds": 1}
        given["second_look"] = False  # which not every engine can do
        options = ReasoningOptions(**resolve_reasoning(config, given, "query"), sampling=Sampling())
        for value in ({"text": "a"}, {"image": Image.new("RGB", (64, 64))}):
            rows.append(Row(value, options, has_media="image" in value, index=len(rows)))
    start = time.monotonic()
    job = Job(rows)
    scheduler.submit(job)
    try:
        answers = job.future.result()
    except (ExecutorError, RefusedError) as error:
        raise ValueError(f"the model is not served: it can't embed a built-in text and picture ({error}).") from error
    if not all(np.isfinite(answer.embedding).all() for answer in answers):
        raise ValueError("the model is not served: its vectors are no numbers. Check the checkpoint and its dtype.")
    logger.info("ready", extra={"facts": {"warm_up_seconds": round(time.monotonic() - start, 3)}})


def serve(server: Server) -> None:
    """Run a server in this thread, the main one, until a signal comes. After SIGTERM it returns as after any end."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # uvicorn sends itself the signal again when it is done, which would end the process as if it had failed
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run()
