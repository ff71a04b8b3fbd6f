"""Bodies: typed structs in, exactly that type out, one typed error for everything else."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from zbroker.errors import InvalidRequestError
from zbroker.wire.codec import BODY_BYTES_MAX, decode, encode
from zbroker.wire.messages import AlterConfigs, CreateTopics, FetchRequest, Hello, MetadataRequest, OpenLane


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_is_decoded(wrap: type[bytes]) -> None:
    assert decode(OpenLane, wrap(encode(OpenLane(1, 2)))) == OpenLane(1, 2)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x90", b"\x91\x01", b"\x92\x01\xa1x", b"\x82\x01\x02\x03\x04", b"\x92\x01", b"\xff" * 50],
)
def test_other_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="OpenLane"):
        decode(OpenLane, body)


def test_bytes_that_are_no_utf8_are_refused() -> None:
    body = bytearray(encode(Hello("abc", 1, 1, "x")))
    body[body.index(b"abc")] = 0xFF
    with pytest.raises(InvalidRequestError):
        decode(Hello, body)


def test_bytes_behind_the_message_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        decode(OpenLane, encode(OpenLane(1, 2)) + b"\0")


@pytest.mark.parametrize("prefix", [b"\x94\x01\x01\x01\xdd\xff\xff\xff\xff", b"\x92\xdd\xff\xff\xff\xff",
                                    b"\x92\xdd\x7f\xff\xff\xff\x91"])  # fmt: skip
def test_t47_a_length_that_is_not_there_allocates_nothing(prefix: bytes) -> None:
    for kind in (FetchRequest, MetadataRequest, CreateTopics):
        with pytest.raises(InvalidRequestError):
            decode(kind, prefix)


def test_t47_a_nest_of_arrays_ends_in_the_typed_error() -> None:
    for kind in (FetchRequest, AlterConfigs):
        with pytest.raises(InvalidRequestError):
            decode(kind, b"\x91" * 100_000)
        with pytest.raises(InvalidRequestError):
            decode(kind, b"\x94\x01\x01\x01" + b"\x91" * 100_000)


def test_a_body_above_the_limit_is_not_looked_into() -> None:
    with pytest.raises(InvalidRequestError, match="at most"):
        decode(OpenLane, bytes(BODY_BYTES_MAX + 1))


def test_unknown_fields_at_the_end_are_passed_over_for_newer_senders() -> None:
    assert decode(OpenLane, msgspec.msgpack.encode([1, 2, "later"])) == OpenLane(1, 2)


_THREADS_MEET = """
import sys, threading
import msgspec
from zbroker.wire.codec import decode, encode
sys.setswitchinterval(1e-7)
for round in range(300):
    inner = msgspec.defstruct("Inner", [(f"f{n}", int, 0) for n in range(30)], array_like=True)
    kind = msgspec.defstruct("Kind", [("inner", list[inner]), ("more", dict[str, inner])], array_like=True)
    body = encode(kind([inner()], {"a": inner()}))
    barrier = threading.Barrier(4)
    def meet():
        barrier.wait()
        assert decode(kind, body).more["a"] == inner()
    threads = [threading.Thread(target=meet) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_threads_that_decode_the_same_type_for_the_first_time_do_not_crash() -> None:
    done = subprocess.run([sys.executable, "-c", _THREADS_MEET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
