"""clmeta.streams."""
