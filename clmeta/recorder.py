"""The recorder, where users look for it."""

from clmeta.record.recorder import Recorder

__all__ = ["Recorder"]
