"""T46: every decoder of messages against mutations of valid ones."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from tests.unit.test_wire_layout import REQUEST_BYTES, golden_messages
from zbroker.errors import BrokerError, InvalidRequestError, UnsupportedVersionError
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import unpack_header

CASES_EACH = 1_200


def mutated(random_: random.Random, body: bytes) -> bytes:
    """A valid message with bytes flipped, cut, doubled, or with lengths that lie."""
    data = bytearray(body)
    for _ in range(random_.randint(1, 4)):
        kind = random_.randrange(5)
        at = random_.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = random_.randbytes(random_.randint(1, 8))
        elif kind == 3:
            data[at:at] = random_.choice([b"\xdd\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
        else:
            data[at:at] = data[: random_.randint(0, 16)]
    return bytes(data)


@pytest.mark.parametrize("seed", [1, 2])
def test_t46_mutated_messages_raise_only_the_declared_error(seed: int) -> None:
    random_ = random.Random(seed)
    tracemalloc.start()
    try:
        for name, message in golden_messages().items():
            body = encode(message)
            for case in range(CASES_EACH):
                data = mutated(random_, body)
                try:
                    decode(type(message), data)
                except InvalidRequestError:
                    continue
                except Exception as error:
                    raise AssertionError(f"seed {seed}, {name}, case {case}: {data.hex()}") from error
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20, peak_bytes


def test_t46_mutated_headers_raise_only_the_declared_errors() -> None:
    random_ = random.Random(3)
    for case in range(50_000):
        data = mutated(random_, REQUEST_BYTES)
        try:
            unpack_header(data)
        except (InvalidRequestError, UnsupportedVersionError):
            continue
        except Exception as error:
            raise AssertionError(f"case {case}: {data.hex()}") from error


def test_t46_random_bytes_are_refused() -> None:
    random_ = random.Random(4)
    kinds = [type(message) for message in golden_messages().values()]
    bodies = [random_.randbytes(65_536) for _ in range(4)]
    for kind in kinds:
        for body in bodies:
            with pytest.raises(BrokerError):
                decode(kind, b"\xdd\x00\x00\xff\xff" + body)
