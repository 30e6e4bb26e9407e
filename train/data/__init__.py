"""Makes training batches: augmentation, mixup, loading; `python -m train.data` examines a dataset."""

from train.data.augment import AugmentConfig, InputFrame, Sample, augment
from train.data.epoch import SampleIndex, epoch_batches
from train.data.loader import Feed, training_batches
from train.data.mixup import mixup
from train.data.training_set import Batch, TrainingSet, pack_labels

__all__ = [
    "AugmentConfig",
    "Batch",
    "Feed",
    "InputFrame",
    "Sample",
    "SampleIndex",
    "TrainingSet",
    "augment",
    "epoch_batches",
    "mixup",
    "pack_labels",
    "training_batches",
]
