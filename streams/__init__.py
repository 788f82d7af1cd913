"""Continual streams over real data: ``load_dataset``, then a stream, then a plain loop."""

from clmeta.streams.arraydata import ArrayData
from clmeta.streams.augment import AUGMENTATIONS
from clmeta.streams.catalog import (
    STREAMS,
    abrupt_classes,
    make_stream,
    permuted_inputs,
    permuted_labels,
    stationary,
    stream_from_description,
    stream_options,
)
from clmeta.streams.datasets import DATASETS, load_dataset
from clmeta.streams.presets import Preset, preset_dataset
from clmeta.streams.stream import Stream

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "STREAMS",
    "ArrayData",
    "Preset",
    "Stream",
    "abrupt_classes",
    "load_dataset",
    "make_stream",
    "permuted_inputs",
    "permuted_labels",
    "preset_dataset",
    "stationary",
    "stream_from_description",
    "stream_options",
]
