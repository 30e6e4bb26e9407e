"""Holds the state of a run that a checkpoint keeps."""

from __future__ import annotations

import contextlib

import torch

from runtime.errors import InputError, ModelError
from runtime.spec import ModelSpec
from train import checkpoint
from train.checkpoint import Checkpoint, Progress
from train.config import TrainConfig
from train.ema import WeightAverage
from train.model import DetectorModel
from train.precision import Precision
from train.run.early_stopping import EarlyStopping


class RunState:
    """State of a run between two steps: all that the following steps depend on.

    Nothing random is in it: it follows from the seed and the position in the run.

    Attributes:
        epoch: epochs completed.
        step: batches done of the next one.
        sums: of its losses over these batches, by name.
        rows: of `metrics.csv`, one a completed epoch.
        best_ap: the best AP so far, -1 before the first evaluation.
        stopping: counts evaluations without a gain.
        data: hashes of the data.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        model: DetectorModel,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        data: dict[str, str],
    ) -> None:
        self.config, self.spec, self.model, self.optimizer, self.precision = config, spec, model, optimizer, precision
        self.data = data
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.epoch, self.best_ap = 0, -1.0
        self.stopping = EarlyStopping(config.patience)
        self.rows: list[dict[str, str]] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step, self.sums = 0, dict.fromkeys(self.names, 0.0)

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the loss's values: its parts, and `total`."""
        return (*self.model.components, "total")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of a step's values: those of the loss, and `gradient`, its norm."""
        return (*self.losses, "gradient")

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Puts the moving average, if there is one, into the model until the end of the block."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def restore(self, saved: Checkpoint) -> None:
        """Takes on a checkpoint's state.

        Raises:
            InputError: the checkpoint is one for use, not to train on.
            ModelError: its weights or its optimizer state are another model's.
        """
        checkpoint.load_weights("the checkpoint", self.model, saved.weights)
        if saved.optimizer is None:
            raise InputError("the checkpoint has no optimizer state to resume from; use last.pt")
        try:
            self.optimizer.load_state_dict(saved.optimizer)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelError(f"the checkpoint's optimizer state does not fit its model ({error})") from error
        self.epoch, self.best_ap = saved.epoch, saved.best_ap
        progress = saved.progress or Progress()
        self.step, self.rows = progress.step, list(progress.rows)
        self.sums.update(progress.sums)
        self.precision.load_state_dict(saved.scaler)
        self.stopping.load_state_dict(saved.stopping, self.spec.class_names)
        if self.average:
            self.average.load_state_dict(saved.average)

    @property
    def is_complete(self) -> bool:
        """True after the last epoch, or where early stopping ends the run."""
        return self.epoch >= self.config.epochs or self.stopping.ends

    def complete_epoch(self, values: dict[str, float]) -> None:
        """Counts an epoch, and keeps its row of `metrics.csv`."""
        self.epoch += 1
        self.stopping.commit()
        self.rows.append({"epoch": str(self.epoch), **{name: f"{value:.6g}" for name, value in values.items()}})
        self._begin_epoch()

    def checkpoint(self) -> Checkpoint:
        """Returns everything that resuming needs; its tensors are those in use."""
        progress = Progress(self.step, dict(self.sums), tuple(self.rows), self.data)
        average = self.average.state_dict() if self.average else {}
        return Checkpoint(
            *(self.config, self.spec, self.model.state_dict(), self.optimizer.state_dict(), self.epoch, self.best_ap),
            average=average,
            scaler=self.precision.state_dict(),
            stopping=self.stopping.state_dict(),
            progress=progress,
        )

    def checkpoint_for_use(self, epoch: int, threshold: float | None) -> Checkpoint:
        """Returns the model alone, with the operating threshold that these weights were measured to have after an epoch."""
        spec = self.spec.replace(operating_threshold=threshold)
        return Checkpoint(self.config, spec, self.model.state_dict(), None, epoch, self.best_ap)
