"""`mmemb-r1 serve`: answer requests for embeddings over HTTP."""

from __future__ import annotations

import argparse
import sys

from mmemb_r1.cli._options import add_encoding_options, add_engine_options, engine_given, model_name

HELP = """\
Serve a checkpoint over HTTP, as OpenAI's embeddings are asked for: POST /v1/embeddings, GET /v1/models, /health,
/ready and /metrics. docs/serve.md says what a request may hold.

    mmemb-r1 serve DIR                                    on this computer only
    MMEMB_R1_API_KEY=... mmemb-r1 serve DIR --host 0.0.0.0      for others, who need the key
    mmemb-r1 serve EXPORTED --engine http://localhost:8001,http://localhost:8002    servers of vLLM run its backbone

The checkpoint is verified first. Inputs of all requests are read and think together. SIGTERM and Ctrl-C end the server
when the requests that it has are answered. Logs are lines of JSON on standard error, in which no input occurs."""

LIMITS = {  # fields of ServerSettings: what each of them is
    "max_waiting": "inputs of all requests that wait; beyond them, 429",
    "max_inputs": "inputs of one request",
    "max_media": "pictures, videos and frames of one input",
    "max_characters": "characters of one input's text",
    "max_body_bytes": "bytes of one request",
    "max_pending_bytes": "bytes of all requests that are being answered; beyond them, 429",
    "max_connections": "connections that are open at once",
    "header_seconds": "seconds in which a request's headers have to come",
    "body_seconds": "seconds in which its body has to come",
    "write_seconds": "seconds in which a client has to take some of an answer",
    "idle_seconds": "seconds that a connection stays open between requests",
    "shutdown_seconds": "seconds in which requests are finished after SIGTERM",
    "workers": "threads that prepare inputs",
}
ASKED = (  # limits of what requests ask for
    (
        "--reasoning-token-limit",
        "max_reasoning_tokens",
        "the largest budget of a rationale, for requests",
    ),
    ("--reasoning-round-limit", "max_reasoning_rounds", "the most rounds, for requests"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    from mmemb_r1.serving.settings import ServerSettings

    defaults = ServerSettings()
    parser.add_argument("model", metavar="MODEL", help="the checkpoint: a folder or a Hub id")
    parser.add_argument("--revision", metavar="REV", help="of a Hub id: a branch, a tag or a commit; default: main")
    parser.add_argument("--name", help="by which requests call the model; default: the last part of MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; others can send requests if it is "
                        "0.0.0.0; default: 127.0.0.1, this computer only")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one; default: 8000")
    add_engine_options(parser)
    limits = parser.add_argument_group("limits of requests and clients")
    for name, meaning in LIMITS.items():
        default = getattr(defaults, name)
        limits.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar="N",
            help=f"{meaning}; default: {default:g}",
        )  # fmt: skip
    parser.add_argument("--prepare-processes", type=int, metavar="N", help="processes that prepare inputs, for models "
                        "that are small or fast; each takes some 400 MB; default: the server's own")  # fmt: skip
    for name, field, meaning in ASKED:
        limits.add_argument(
            name, type=int, default=getattr(defaults, field), metavar="N", help=f"{meaning}; default: %(default)s"
        )
    add_encoding_options(
        parser,
        allow_remote_media="",
        max_image_tokens=None,
        max_image_pixels=None,
        max_text_tokens=None,
        batch_size=defaults.batch_size,
        max_batch_tokens=defaults.max_batch_tokens,
        decode_batch_size="4 x --batch-size",
    )


def run(args: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError("serving needs FastAPI and more: pip install 'mmemb-r1[serve]'") from error

    from mmemb_r1.serving.logs import log_to
    from mmemb_r1.serving.opening import open_model
    from mmemb_r1.serving.running import make_server, serve
    from mmemb_r1.serving.settings import ServerSettings, api_keys

    settings = ServerSettings(
        batch_size=args.batch_size,
        max_batch_tokens=args.max_batch_tokens,
        decode_batch_size=args.decode_batch_size,
        max_reasoning_tokens=args.reasoning_token_limit,
        max_reasoning_rounds=args.reasoning_round_limit,
        allow_remote_media=args.allow_remote_media,
        prepare_processes=args.prepare_processes,
        **{name: getattr(args, name) for name in LIMITS},
    )
    log_to(sys.stderr)
    config = {name: getattr(args, name) for name in ("max_image_tokens", "max_image_pixels", "max_text_tokens")}
    model = open_model(args.model, revision=args.revision, device=args.device, **engine_given(args), **config)
    name = args.name or model_name(args.model) or "model"  # the folder may be called so, at the top of all
    try:
        serve(make_server(model, name, settings, host=args.host, port=args.port, keys=api_keys()))
    finally:
        if model.engine is not None:
            model.engine.close()
    return 0
