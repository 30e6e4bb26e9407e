"""Fusion weights over the images of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.small_models import noise, settled, tiny
from train.distributed import World
from train.logs.fusion_weights import FUSION_COLUMNS, watched_weights


def test_the_weights_of_each_image_are_collected() -> None:
    model = settled(tiny()).eval()
    batches = [torch.from_numpy(noise(seed, count)) for seed, count in ((0, 2), (1, 1))]
    with torch.no_grad():
        seen = [model.inspect(batch)[1] for batch in batches]
        with watched_weights(model) as found:
            for batch in batches:
                model.maps(batch)
        model.maps(batches[0])  # no longer watched
    found.gather(World())
    assert tuple(found.samples) == FUSION_COLUMNS
    assert FUSION_COLUMNS[:4] == ("P5_from_P5", "P5_from_P4", "P5_from_P3", "P4_from_P5")
    for number, name in enumerate(FUSION_COLUMNS):
        level, source = divmod(number, 3)
        expected = torch.cat([weights[level][:, source].mean(dim=(1, 2)) for weights in seen])
        np.testing.assert_allclose(found.samples[name], expected.numpy(), atol=1e-6)
    means = [*found.means().values()]
    assert [sum(means[start : start + 3]) for start in (0, 3, 6)] == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("changes", [{"fusion": "none"}, {"fusion": "sum"}, {"detector": "retinanet", "fusion": "none"}])
def test_other_models_have_none(changes: dict[str, str]) -> None:
    config = tiny(**changes)
    model = settled(config).eval()
    with torch.no_grad(), watched_weights(model) as found:
        model.maps(torch.from_numpy(noise(0, 1, config.size)))
    found.gather(World())
    assert found.samples == found.means() == {}


def test_the_shares_of_all_ranks_are_joined() -> None:
    class Two(World):
        def gather(self, value: object) -> list[object]:  # type: ignore[override]
            return [value, {level: np.full((1, 3), level / 4) for level in range(3)}]

    model = settled(tiny()).eval()
    with torch.no_grad(), watched_weights(model) as found:
        model.maps(torch.from_numpy(noise(0, 2)))
    found.gather(Two())
    assert [len(values) for values in found.samples.values()] == [3] * 9
    assert [values[-1] for values in found.samples.values()] == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
