"""The record batch: one layout in shared memory, on the wire and on disk."""
