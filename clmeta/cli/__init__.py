"""The command line."""

from clmeta.cli.app import main

__all__ = ["main"]
