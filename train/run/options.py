"""Defines what a run needs besides its configuration: data, folders and machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.datasets.dataset import MadeSplit


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Data, folders and machine of a run, besides its configuration."""

    data: Path
    """Dataset folder, of any layout in `runtime.datasets`."""
    output: Path
    """Folder for checkpoints, metrics and images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    device_batch: int | None = None
    """Most images that a device computes at a time; None for its whole share of a batch."""
    init: Path | None = None
    """Weights to start from: anything `train.weights.read_weights` takes; a resumed run has its own."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in this one, None chooses by the cores."""
    compile_with: str | None = None
    """Backend of `torch.compile`; None to not compile."""
    save_steps: int | None = None
    """Steps between checkpoints within an epoch; None for no limit. Every epoch ends with one."""
    save_minutes: float = 15.0
    """Minutes between checkpoints within an epoch."""
    keep: int = 2
    """Checkpoints kept to continue from, the newest among them."""
    log_every: int = 20
    """Steps between rows of `steps.csv`."""
    strict: bool = False
    """Fail on the first unreadable image."""
    cache: bool = True
    """Keep the decoded training images in memory if they fit."""
    progress: bool = True
    """Show progress bars on a terminal."""
    made_split: MadeSplit | None = None
    """How data without validation images is divided; None for the default."""
    follow_links: bool = False
    """Read files to which symbolic links lead out of the data."""
