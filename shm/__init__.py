"""Shared memory: regions, lanes, boards and doorbells, each word with one writer and its argument in prose."""
