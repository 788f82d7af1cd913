"""clmeta."""
