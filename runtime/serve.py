"""Command line `python -m runtime.serve`: serves a model over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Optional

from runtime import cli
from runtime.backends.open import open_backend
from runtime.components import load
from runtime.detector import Detector, default_score_threshold
from runtime.errors import InputError
from runtime.serving.limits import Limits

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "DETECTOR_TOKEN"
_EXTRA = "serve"
_LOWEST = 0.05
_DEFAULTS = Limits()


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.serve",
        "Serve a model over HTTP: POST an image to /detect, or open the page at / in a browser.",
        "python -m runtime.serve --engine model.onnx\n  curl --data-binary @street.jpg http://127.0.0.1:8000/detect",
    )
    cli.add_model(parser, served=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=cli.count, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--token",
        help=f"clients must bring it as Authorization: Bearer TOKEN; needed with any --host that others can reach. Better set"
        f" {TOKEN_VARIABLE}, which other users of this machine cannot see",
    )
    cli.add_conf(parser)
    parser.add_argument(
        "--min-conf",
        type=cli.probability,
        help=f"lowest threshold that a request may ask for (default: {_LOWEST}, or --conf if that is lower)",
    )
    parser.add_argument("--batch", type=cli.positive, help="most images run together (default: the model's fixed size, or 8)")
    _add_limits(parser)
    return parser.parse_args(arguments)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    images, megabytes, megapixels = _DEFAULTS.most_images, _DEFAULTS.most_bytes / (1 << 20), _DEFAULTS.most_pixels / 1e6
    upload, answer = _DEFAULTS.upload_seconds, _DEFAULTS.answer_seconds
    for option, default, text in (
        ("--max-megabytes", megabytes, "of an image file"),
        ("--max-megapixels", megapixels, "of an image"),
        ("--upload-timeout", upload, "seconds for the upload of an image"),
        ("--timeout", answer, "seconds from the end of the upload to the answer"),
    ):
        parser.add_argument(
            option, type=cli.positive_number, default=default, metavar="N", help=f"{text} (default: {default:g})"
        )
    parser.add_argument(
        "--max-images",
        type=cli.positive,
        default=images,
        metavar="N",
        help=f"images waiting and running at a time; more are refused with 503 (default: {images})",
    )


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        load(name, _EXTRA)
    from runtime.serving.app import check_token, create_app
    from runtime.serving.model_file import ModelFile
    from runtime.serving.server import is_loopback, listen, serve

    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    check_token(token)
    is_local = is_loopback(options.host)
    if not is_local and token is None:
        raise InputError(f"--host {options.host}: others can reach it; set {TOKEN_VARIABLE} or --token, which they must bring")
    limits = Limits(
        max(int(options.max_megabytes * (1 << 20)), 1),
        max(int(options.max_megapixels * 1e6), 1),
        options.max_images,
        options.upload_timeout,
        options.timeout,
    )
    hosts = None if token else {"localhost", "127.0.0.1", "[::1]", options.host.lower()}
    with listen(options.host, options.port) as listener:
        model_file = ModelFile(options.engine)
        with _open_detector(options) as detector:
            app = create_app(
                detector,
                threshold=options.conf,
                batch=options.batch,
                limits=limits,
                token=token,
                model_file=model_file,
                hosts=hosts,
            )
            host, port = listener.getsockname()[:2]
            log.info("serving %s at http://%s:%d/ (Ctrl-C ends it)", options.engine, f"[{host}]" if ":" in host else host, port)
            serve(app, listener, limits)
    return 0


def _open_detector(options: argparse.Namespace) -> Detector:
    """Opens the model at the lowest threshold that a request may ask for."""
    backend = open_backend(options.engine, options.backend)
    default = default_score_threshold(backend.spec) if options.conf is None else options.conf
    lowest = min(_LOWEST, default) if options.min_conf is None else options.min_conf
    try:
        if lowest > default:
            raise InputError(f"--min-conf {lowest:g}: is above the threshold of {default:g}; set --conf too")
        return Detector(backend, score_threshold=lowest)
    except BaseException:
        backend.close()
        raise


if __name__ == "__main__":
    cli.run(main)
