"""Fixtures of these tests."""

from tests.support.torch_fixtures import coco_set, steady_torch  # noqa: F401 - fixtures
