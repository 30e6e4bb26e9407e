"""Describes the server's answers, for its OpenAPI document."""

from __future__ import annotations

from typing import Any, Optional

from pydantic import BaseModel, Field


class Found(BaseModel):
    """A detection."""

    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the image", min_length=4, max_length=4)
    score: float = Field(ge=0, le=1)
    class_id: int = Field(ge=0)
    class_name: str


class FoundInImage(BaseModel):
    """What was found in an image."""

    source: str = Field(description="the name that the request gave")
    width: int = Field(description="of the image in pixels, turned as its EXIF data say", ge=1)
    height: int = Field(ge=1)
    detections: list[Found] = Field(description="best first")
    threshold: float = Field(description="lowest score of a detection", ge=0, le=1)
    milliseconds: dict[str, float] = Field(
        description="time of each stage: decode and wait of the image; preprocess, infer and postprocess of its batch"
    )
    batch: int = Field(description="number of images that were run together", ge=1)


class Served(BaseModel):
    """The model that is served."""

    name: str
    file: Optional[str] = Field(description="name of the model file")
    sha256: Optional[str] = Field(description="of the file that was opened")
    file_state: Optional[str] = Field(description="the file now: as opened, replaced or missing; the opened one is served on")
    class_names: list[str]
    threshold: float = Field(description="score threshold of a request that names none", ge=0, le=1)
    lowest_threshold: float = Field(description="lowest that a request may name", ge=0, le=1)
    batch: int = Field(description="largest number of images that are run together", ge=1)
    most_bytes: int = Field(description="of an image file", ge=1)
    most_pixels: int = Field(description="of an image", ge=1)
    spec: dict[str, Any] = Field(description="the model's spec")
    curve: Optional[dict[str, Any]] = Field(description="thresholds, precision, recall and F1, if the manifest has them")


class State(BaseModel):
    """State of the server."""

    status: str
    file_state: Optional[str] = None


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    detail: str
