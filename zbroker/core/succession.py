"""Whether a new leader may take over the rest of its predecessor's log, batch by batch, before it begins its epoch.

A successor in sync has all that was acknowledged, but its log need not be a beginning of its predecessor's: elected
while it had a tail of an older epoch that the predecessor never had, it would put the predecessor's batches behind its
own. Then the same epoch would stand for different records below the same offset, and no comparison by epochs (KIP-101)
would ever find the difference. Such a successor leads with what it has: nothing behind it was acknowledged.
"""

from __future__ import annotations

from zbroker.core.replication import History


def may_complete(last_epoch: int, log_end: int, predecessor: History) -> bool:
    """Whether a log that ends at `log_end`, with a last batch of `last_epoch` (-1: it is empty), is a beginning of the
    predecessor's, so that the predecessor's batches from `log_end` on continue it."""
    if last_epoch < 0:
        return True
    epoch, end_offset = predecessor.end_offset_for(last_epoch)
    return epoch == last_epoch and log_end <= end_offset
