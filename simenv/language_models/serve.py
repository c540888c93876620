"""An OpenAI-compatible endpoint on loopback in front of a model in a local folder.

    python -m simenv.language_models.serve --path FOLDER --readout logits --port 8000
    python run.py +experiment=bias_loop agent=llm llm=openai llm.model=NAME:logits llm.base_url=http://127.0.0.1:8000/v1

The protocol is `simenv.language_models.local.endpoint`'s affair. There is no authentication: whoever reaches the port
may ask.
"""

from __future__ import annotations

import argparse
import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simenv.errors import ConfigError, MissingExtraError, SimenvError

if TYPE_CHECKING:
    from simenv.language_models.local.model import TransformersLocal

BACKLOG = 1024  # connections that wait to be accepted; a page batch opens as many as llm.concurrency at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; the exit code is 0 after Ctrl-C or SIGTERM, that of the error otherwise."""
    options = _parser().parse_args(arguments)
    try:
        from simenv.language_models.local.model import TransformersLocal

        model = TransformersLocal(
            options.path,
            options.model,
            readout=options.readout,
            batch_size=options.batch_size,
            device=None if options.device == "auto" else options.device,
            dtype=options.dtype,
        )
        serve(model, options.host, options.port)
    except SimenvError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while the model loads
        return 130
    return 0


def serve(model: TransformersLocal, host: str = "127.0.0.1", port: int = 0) -> None:
    """Answer chat completions until SIGINT or SIGTERM; what is in flight then is answered first.

    One line on stdout says when and where: ``serving NAME at http://HOST:PORT/v1``.

    Args:
        model: what answers.
        host: address to listen on.
        port: 0 = a free one.

    Raises:
        ConfigError: the address cannot be listened on.
        MissingExtraError: starlette or uvicorn is not installed.
    """
    from simenv.language_models.local.endpoint import ChatEndpoint

    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("simenv.language_models.serve", "serve") from error

    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    ready = f"serving {model.model} at http://{shown}:{listening.getsockname()[1]}/v1 (Ctrl-C stops)"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(ready, flush=True)

    application = ChatEndpoint(model).application()
    server = Server(uvicorn.Config(application, log_level="warning", access_log=False, lifespan="off"))

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn hands a signal on to the handler it found, once all is answered: with this one the process ends cleanly
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
            print(f"warning: {host} is no loopback address, and there is no authentication", file=sys.stderr)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}; expected an address and a free port") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simenv serve",
        description="an OpenAI-compatible endpoint in front of a local language model",
    )
    parser.add_argument("--path", required=True, metavar="FOLDER", help="a causal model with a chat template")
    parser.add_argument("--model", metavar="NAME", help="as clients call it; the folder's by default")
    parser.add_argument(
        "--readout",
        choices=("json", "logits"),
        default="json",
        help="json: decoding under the schema; logits: expectations from one forward pass, the model is NAME:logits",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (there is no authentication)")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, told when ready")
    parser.add_argument("--batch-size", type=int, default=64, help="most requests answered at once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU where there is one")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ...; auto: as saved")
    return parser


if __name__ == "__main__":
    sys.exit(main())
