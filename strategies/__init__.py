"""clmeta.strategies."""
