"""Cameras and network streams, which come at their own pace and may be lost."""
