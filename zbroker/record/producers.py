"""Who a batch's header says that it is from: producer ids, sequences, and names that an application gives to batches.

An id below `APPLICATION_IDS` was handed out by the coordinator and comes with an epoch and a sequence (KIP-98). From
`APPLICATION_IDS` on, an id stands for the application's own name of one batch (`dedup_id`): 62 bits of its BLAKE2b,
with epoch 0 and sequence 0. So a name is in the log like any producer id, and whoever copies or reads the log again
knows it. Two names of one window of 100,000 share their bits with a probability of 1 to 10^9.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

APPLICATION_IDS: Final = 1 << 62
SEQUENCES: Final = 1 << 31  # sequences go from 0 to one less, and then begin again


def application_id(name: bytes) -> int:
    """The producer id that stands for an application's name of a batch."""
    digest = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")
    return APPLICATION_IDS | digest & (APPLICATION_IDS - 1)


def last_sequence(base_sequence: int, record_count: int) -> int:
    """The sequence of a batch's last record."""
    return (base_sequence + record_count - 1) % SEQUENCES


def steps_between(earlier: int, later: int) -> int:
    """How far `later` lies behind `earlier`: negative where it lies before. Right for less than a billion steps."""
    steps = (later - earlier) % SEQUENCES
    return steps - SEQUENCES if steps >= SEQUENCES // 2 else steps
