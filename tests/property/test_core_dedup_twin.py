"""Against a twin that remembers everything: a partition stores each batch once and in order, whatever comes again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_core_dedup import Log, batch, sequences
from zbroker.errors import BrokerError
from zbroker.record.producers import SEQUENCES

PRODUCERS = 3


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, PRODUCERS - 1), st.integers(-12, 3), st.integers(1, 4)), max_size=120))
def test_any_order_of_arrivals_appends_a_prefix_of_each_producer_once(arrivals: list[tuple[int, int, int]]) -> None:
    """Each producer cuts its records into batches once; arrivals name batches around the newest, in any order."""
    log = Log(sequences())
    cuts: list[list[tuple[int, int]]] = [
        [(0, 1)] for _ in range(PRODUCERS)
    ]  # (position in the producer's stream, count)
    appended: list[list[int]] = [[] for _ in range(PRODUCERS)]
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for producer, step, count in arrivals:
        batches = cuts[producer]
        index = max(0, min(len(batches), len(appended[producer]) + step))
        if index == len(batches):
            position, length = batches[-1]
            batches.append((position + length, count))
        position, length = batches[index]
        verdict = log.offer(batch(position % SEQUENCES, length, producer_id=producer))
        expected = len(appended[producer])
        if index == expected:
            assert verdict == "appended"
            appended[producer].append(index)
            places[producer, index] = (log.end - length, log.end)
        elif index > expected:
            assert isinstance(verdict, BrokerError)
            assert verdict.retriable
        else:
            assert isinstance(verdict, tuple)
            assert verdict in (places[producer, index], (-1, verdict[1]))
            assert verdict[1] >= places[producer, index][1]
            assert verdict[1] <= log.end
    for producer in range(PRODUCERS):
        assert appended[producer] == list(range(len(appended[producer])))
