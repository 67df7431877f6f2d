"""Connect to a Ray cluster, or start Ray on this machine, without telemetry; say what a worker gets."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

OBJECT_STORE = 500 * 2**20  # bytes, of Ray on this machine: vectors go to files and not through it
RETRIES = 3  # of work whose worker died
_NAMED = 3  # pieces of work, in a warning

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSlots:
    """
    Say how many workers there are, and what each of them gets.

    Attributes:
        workers: how many, each with a model.
        threads: CPU cores of each.
        gpus: GPUs of each, 0 for none; a part of 1 lets several share one.
    """

    workers: int
    threads: int = 1
    gpus: float = 0

    @property
    def device(self) -> str:
        """Name the device of each, for PyTorch."""
        return "cuda" if self.gpus else "cpu"

    def options(self) -> dict[str, Any]:
        """Give the options of Ray for one worker: what it gets, its environment, what happens when it dies."""
        variables = {
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",  # hundreds of workers would ask the Hub at the same time
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return {"num_cpus": self.threads, "num_gpus": self.gpus, "runtime_env": {"env_vars": variables}}


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[Any]:
    """
    Connect to Ray for as long as the block lasts, if the process is not connected yet.

    Usage statistics are not sent unless `RAY_USAGE_STATS_ENABLED=1` says so, and there is no dashboard.

    Args:
        address: of a running cluster, as `ray.init` takes it: `"auto"`, `"host:6379"`; this machine is one of it.
            Default: Ray is started on this machine, reachable from it alone, and ended with the block.
        cpus: of Ray on this machine. Default: as many as there are cores.

    Yields:
        The module `ray`.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: an `OSError`, if there is no cluster at the address, or it takes no process without its token.
        ValueError: if the process is connected already, and an address is given.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported
    try:
        import ray
    except ImportError as error:
        raise ImportError("this needs Ray: pip install 'mmemb-r1[ray]'") from error
    if ray.is_initialized():
        if address is not None:
            raise ValueError(
                f"this process is connected to Ray already; leave out the address {address!r}, or call ray.shutdown()."
            )
        yield ray
        return
    with nullcontext() if address is not None else _on_loopback():
        _init(address, cpus)
        try:
            yield ray
        finally:
            ray.shutdown()


def _init(address: str | None, cpus: int | None) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is not None:
        try:
            ray.init(address, **common)
        except (ConnectionError, AuthenticationError) as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(
                f"there is no Ray cluster at {address!r} that takes this process ({reason:.200}). Name the HOST:PORT "
                "that `ray start` told, or auto. If the cluster asks for a token, set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token as on its machines."
            ) from error
        return
    ray.init(
        "local",
        num_cpus=cpus or os.cpu_count(),
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        **common,
    )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """
    Let Ray that is started in the block listen to this machine alone; the names are those of the systems where it
    always does so.

    `ray.init(_node_ip_address="127.0.0.1")` would do the opposite: Ray replaces that by an address that others reach.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if name in os.environ:  # the user chose
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER  # of this process: read when Ray was imported, which may be long ago
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[name]
        ray_constants.ENABLE_RAY_CLUSTER = before


def slots(ray: Any, workers: int | None, threads: int, gpus: float | None, spare: int = 0) -> WorkerSlots:
    """
    Fill in how many workers a cluster has room for: one per GPU, where there are any, else one per `threads` cores.

    Args:
        ray: the module, connected.
        workers, threads, gpus: see [`WorkerSlots`]; what is `None` is filled in.
        spare: cores that are left for something else.

    Raises:
        ValueError: if a number is none, or the cluster has no room for a single worker.
    """
    there = ray.cluster_resources()
    if gpus is None:
        gpus = 1 if there.get("GPU", 0) >= 1 else 0
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("gpus", gpus, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; allowed: {least} or more.")
    room = int((there.get("CPU", 0) - spare) // threads)
    if gpus:
        room = min(int(there.get("GPU", 0) // gpus), room)
    if room < 1:
        raise ValueError(
            f"a worker takes {threads} CPU cores and {gpus} GPUs, and the cluster has {there.get('CPU', 0):.0f} and "
            f"{there.get('GPU', 0):.0f} in all. Lower `threads` or `gpus`, or add machines."
        )
    return WorkerSlots(workers or room, threads, gpus)


def attempt_counter() -> Any:
    """Start an actor that counts how often workers started, and how often work was begun: see [`check_attempts`]."""
    import ray

    return ray.remote(num_cpus=0)(_Attempts).remote()


class _Attempts:
    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.started = 0  # workers since one of them began some work

    def start(self) -> int:
        self.started += 1
        return self.started

    def begin(self, what: str) -> int:
        self.started = 0
        self.begun[what] += 1
        return self.begun[what]

    def again(self) -> list[str]:
        """List what was begun more than once, each as often as that was so."""
        return list((self.begun - Counter(set(self.begun))).elements())


def check_starts(counter: Any, workers: int, model: str) -> None:
    """
    Count that one of `workers` starts, and refuse it if too many died before any of them began: Ray would start others
    for ever.

    Raises:
        OSError: naming the model.
    """
    import ray

    if ray.get(counter.start.remote()) > workers * (RETRIES + 1):
        raise OSError(
            f"workers died {workers * (RETRIES + 1)} times before any of them began: while {model} was loaded. If it "
            "was memory, choose fewer workers, or give each more; Ray's logs say why."
        )


def check_attempts(counter: Any, what: str) -> None:
    """
    Count that some work is begun, and refuse it if that was so too often: Ray would begin it again for ever.

    Raises:
        OSError: naming what it was.
    """
    import ray

    if ray.get(counter.begin.remote(what)) > RETRIES + 1:
        raise OSError(
            f"the worker of {what} died {RETRIES + 1} times. What was finished is kept. If it was memory, lower "
            "`shard_size` or `batch_size`, or give each worker more; then make the same call again."
        )


def tell_again(ray: Any, counter: Any) -> None:
    """Warn that workers died, if work was begun again: whoever is not told does not look for the reason."""
    names = ray.get(counter.again.remote())
    if not names:
        return
    named = names[:_NAMED] + ([f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else [])
    logger.warning(
        "workers died, and others began again what they had: %d in all (%s). Ray's logs say why.",
        len(names),
        "; ".join(named),
    )
