"""Count what a server does, for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from mmemb_r1.serving.executor import Answer, Row
from mmemb_r1.serving.scheduler import Observer

if TYPE_CHECKING:
    from mmemb_r1.serving.scheduler import Scheduler

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics(Observer):
    """Hold the numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        options: dict[str, Any] = {"registry": self.registry, "namespace": "mmemb_r1"}
        self.requests = Counter("requests", "Requests for embeddings, by status of HTTP.", ["status"], **options)
        self.request_seconds = Histogram(
            "request_seconds", "Time of a request for embeddings, by its reasoning mode.", ["mode"], buckets=SECONDS,
            **options,
        )  # fmt: skip
        self.inputs = Counter("inputs", "Inputs that were embedded, by reasoning mode.", ["mode"], **options)
        self.input_seconds = Histogram(
            "input_seconds", "Time from an input's arrival to its vector, by reasoning mode.", ["mode"],
            buckets=SECONDS, **options,
        )  # fmt: skip
        self.reasoned = Counter("inputs_reasoned", "Inputs whose vector is a reasoned one.", ["mode"], **options)
        self.stopped = Counter("inputs_stopped", "Inputs whose thinking max_latency_ms stopped.", **options)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens that were read.", **options)
        self.reasoning_tokens = Counter("reasoning_tokens", "Tokens of rationales that were written.", **options)
        self.batch_rows = Histogram("batch_rows", "Inputs that were read at once.", buckets=ROWS, **options)
        self.step_rows = Histogram("step_rows", "Inputs that thought at once, by step.", buckets=ROWS, **options)
        self.waiting = Gauge("inputs_waiting", "Inputs that wait to be read.", **options)
        self.thinking = Gauge("inputs_thinking", "Inputs that think.", **options)
        self.pending_bytes = Gauge("pending_bytes", "Bytes of requests that are being answered.", **options)

    def follow(self, scheduler: Scheduler) -> None:
        """Read gauges from a scheduler."""
        self.waiting.set_function(lambda: scheduler.waiting)
        self.thinking.set_function(lambda: scheduler.thinking)

    def text(self) -> bytes:
        """Write all of them as Prometheus reads them."""
        return generate_latest(self.registry)

    def batch_read(self, rows: Sequence[Row]) -> None:
        self.batch_rows.observe(len(rows))

    def stepped(self, rows: int) -> None:
        self.step_rows.observe(rows)

    def answered(self, row: Row, answer: Answer, seconds: float) -> None:
        mode = row.options.reasoning
        self.inputs.labels(mode).inc()
        self.input_seconds.labels(mode).observe(seconds)
        if answer.rounds:
            self.reasoned.labels(mode).inc()
        if answer.stopped:
            self.stopped.inc()
        self.prompt_tokens.inc(answer.prompt_tokens)
        self.reasoning_tokens.inc(answer.reasoning_tokens)
