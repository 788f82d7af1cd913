"""Many learners in one process."""

from clmeta.replicas.run import (
    ReplicasFailed,
    ReplicasProgress,
    ReplicaWarning,
    learners_at_a_time,
    run_replicas,
)

__all__ = [
    "ReplicaWarning",
    "ReplicasFailed",
    "ReplicasProgress",
    "learners_at_a_time",
    "run_replicas",
]
