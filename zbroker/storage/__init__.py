"""A copy of a partition as files: segments, indexes, checkpoints, recovery, retention."""
