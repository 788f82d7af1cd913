"""MetaOptimize as a torch optimiser."""
