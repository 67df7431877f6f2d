"""
Serve a model with replicas on Ray Serve: in each of them the application of `mmemb-r1 serve`.

`serve run examples/ray-serve.yaml` starts it on a laptop, `serve deploy examples/ray-serve.yaml` on a cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ray import serve

from mmemb_r1.file_formats import check_type
from mmemb_r1.modeling.options_mmemb_r1 import nearest_name

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

NAME = "mmemb-r1"  # of the deployment, for the `deployments` of a YAML file
ONGOING = 64  # requests that one replica has at the same time, whose inputs are read and think together


@dataclass(frozen=True)
class ServedModel:
    """
    Say what replicas serve: the `args` of a YAML file.

    Args:
        model: the checkpoint: a folder that all machines see, or a Hub id.
        name: by which requests call it. Default: the last part of `model`.
        revision: of a Hub id.
        device: Default: the GPU that the replica has, or else the CPU.
        config: fields of the config that take the place of the checkpoint's, see `open_model`.
        settings: fields of `ServerSettings`.
    """

    model: str
    name: str | None = None
    revision: str | None = None
    device: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> ServedModel:
        """
        Read `args`.

        Raises:
            ValueError: naming what is missing, unknown, or of another type.
        """
        known = {one.name: str(one.type) for one in fields(cls)}
        if unknown := [key for key in args if key not in known]:
            raise ValueError(
                f"args: {unknown[0]!r} is not known; allowed: {', '.join(known)}{nearest_name(unknown[0], known)}"
            )
        if "model" not in args:
            raise ValueError("args: the key 'model' is missing; name a checkpoint, a folder or a Hub id.")
        for key, value in args.items():
            check_type(f"args: {key}", value, known[key].replace("[str, Any]", ""))
        return cls(**args)


def app(args: dict[str, Any]) -> Application:
    """
    Make the application of Ray Serve: `import_path: mmemb_r1.ray.deployment:app`.

    How many replicas there are, and what each has, is said by the `deployments` of the YAML file. The keys of the API
    are in the environment of the replicas, as for `mmemb-r1 serve`.

    Args:
        args: see [`ServedModel`].

    Raises:
        ValueError: if they are not what they have to be; before a replica starts.
    """
    from mmemb_r1.serving.settings import ServerSettings

    served = ServedModel.read(args)
    try:
        settings = ServerSettings(**served.settings)
    except TypeError as error:
        raise ValueError(f"args: settings: {error}; allowed: {', '.join(vars(ServerSettings()))}.") from error
    replica = serve.deployment(
        name=NAME,
        max_ongoing_requests=ONGOING,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        ray_actor_options={"num_cpus": 1},
    )
    return replica(serve.ingress(_builder(served, settings))()).bind()


def _builder(served: ServedModel, settings: Any) -> Callable[[], FastAPI]:
    """Make what each replica calls when it starts."""

    def build() -> FastAPI:
        from mmemb_r1.serving.opening import open_model
        from mmemb_r1.serving.running import SWITCH_SECONDS, make_app
        from mmemb_r1.serving.settings import api_keys

        sys.setswitchinterval(SWITCH_SECONDS)
        model = open_model(served.model, revision=served.revision, device=served.device, **served.config)
        name = served.name or served.model.rstrip("/").rsplit("/", 1)[-1]
        return make_app(model, name, settings, keys=api_keys())

    return build
