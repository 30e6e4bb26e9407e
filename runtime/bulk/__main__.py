"""Command line `python -m runtime.bulk`: detects in a folder, list or Parquet file of any length, into Parquet shards."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from runtime import cli
from runtime.bulk.attempts import forgotten_if_ended
from runtime.bulk.cluster import choose_pool, connected, load_ray, make_shards
from runtime.bulk.libraries import parquet
from runtime.bulk.run import finish, open_job
from runtime.bulk.shards import Counts, read_counts, shard_path
from runtime.bulk.worker import Job
from runtime.detector_options import DetectorOptions, add_detector
from runtime.errors import InputError
from runtime.files import locked_folder

log = logging.getLogger(__name__)

_ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")


def parse(arguments: Optional[list[str]] = None) -> argparse.Namespace:
    parser = cli.parser(
        "runtime.bulk",
        "Detect in many images with several processes, on this machine or on a Ray cluster. The same command goes on where it\n"
        "stopped, however it was stopped. Every image gets one row; those that cannot be used say why in the column `error`.",
        "python -m runtime.bulk --engine model.onnx --source photos/ --output found/ --workers 4",
    )
    cli.add_model(parser, served=False)
    parser.add_argument(
        "--source",
        required=True,
        help="folder (with those in it), glob pattern (quoted), list of files (.txt), or Parquet file with a column `path`"
        " or `bytes`",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the shards; on a cluster every machine must see it"
    )
    add_detector(parser)
    parser.add_argument("--batch", type=cli.positive, help="images run together (default: the model's fixed batch size, or 1)")
    parser.add_argument("--shard-size", type=cli.positive, default=1000, help="images of a shard (default: 1000)")
    parser.add_argument(
        "--workers",
        type=cli.positive,
        metavar="N",
        help="processes, each with the model (default: one on 4 cores, or on a GPU)",
    )
    parser.add_argument(
        "--gpus",
        type=cli.probability,
        metavar="SHARE",
        help="of a GPU for each worker (default: 1 for models that need one, else 0)",
    )
    parser.add_argument("--address", help="of a Ray cluster: auto or host:port (default: one is started on this machine)")
    parser.add_argument("--json", action="store_true", help="the counts as JSON on stdout")
    return parser.parse_args(arguments)


def main(arguments: Optional[list[str]] = None) -> int:
    options = parse(arguments)
    parquet()
    load_ray(local=options.address is None)  # now: what is missing is said before any work
    with locked_folder(options.output) as folder:
        chosen = DetectorOptions.of(options)
        job = open_job(folder, options.source, chosen, shard_size=options.shard_size, batch=options.batch)
        done = {
            shard: read_counts(shard_path(folder, shard), job.plan.size(shard), job.metadata)
            for shard in range(job.plan.shards)
        }
        missing = [shard for shard, counts in done.items() if counts is None]
        earlier = sum((counts for counts in done.values() if counts is not None), Counts())
        if earlier.images:
            log.info("%d of %d shards are there; %d are left", job.plan.shards - len(missing), job.plan.shards, len(missing))
        start = time.perf_counter()
        new = _make(job, missing, earlier, options) if missing else Counts()
        seconds = time.perf_counter() - start
        finish(job)
        _report(job, earlier, new, seconds, as_json=options.json)
    return 0


def _make(job: Job, missing: list[int], earlier: Counts, options: argparse.Namespace) -> Counts:
    """Makes the missing shards, under a progress bar."""
    gpus = options.gpus
    if gpus is None:
        gpus = float(options.backend in _ON_GPU or Path(job.chosen.engine).suffix == ".engine")
    new = Counts()
    with forgotten_if_ended(job.folder), connected(options.address, job.folder, options.workers) as ray:
        pool = choose_pool(ray, options.workers, gpus)
        log.info("%d workers with %d threads each", pool.workers, pool.threads)
        with tqdm(desc="bulk", total=job.plan.images, initial=earlier.images, unit="image", disable=None, leave=False) as bar:
            for counts in make_shards(ray, job, pool, missing):
                new += counts
                bar.update(counts.images)
    return new


def _report(job: Job, earlier: Counts, new: Counts, seconds: float, *, as_json: bool) -> None:
    total = earlier + new
    rate = new.images / seconds if new.images else 0.0
    if as_json:
        counts = {**vars(total), "shards": job.plan.shards, "new_images": new.images, "seconds": round(seconds, 3)}
        print(json.dumps({**counts, "images_per_second": round(rate, 2)}))
    log.info(
        "%d images, %d of them failed, %d detections; %d new ones, %.1f images/s; they are in %s",
        total.images,
        total.failed,
        total.detections,
        new.images,
        rate,
        job.folder,
    )
    if total.failed == total.images:
        raise InputError(f"none of the {total.images} images could be used; the column `error` in {job.folder} says why")


if __name__ == "__main__":
    cli.run(main)
