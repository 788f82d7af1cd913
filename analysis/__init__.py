"""clmeta.analysis."""
