"""The rows that the table of figures must have, as their first words."""

from __future__ import annotations

ROWS = (
    "send_many, acknowledged, tmpfs",
    "send, acknowledged",
    "send, the call",
    "send with a key, the call",
    "sender, acknowledged",
    "sender, the call",
    "consume as records, poll",
    "consume as batches, warm",
    "consume as batches, at the tail",
    "acknowledge, acks=1, lane, p50",
    "acknowledge, acks=1, zmq through the router, p50",
    "end to end to a sleeping consumer, p50",
    "worker's CPU for a million records, ",
    "worker's CPU for a record that wakes ",
    "send_many, sustained, ",
    "zbroker serve to the first acknowledged record",
    "resident memory, idle",
    "create ",
)
