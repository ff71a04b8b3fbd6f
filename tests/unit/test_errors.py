"""Errors of requests as they travel: number, message, and the hint where it is not that of every such error."""

import pytest

from zbroker.errors import CODES, InvalidRequestError, UnknownError, error_for


def test_what_a_reply_carries_gives_the_same_error_again() -> None:
    sent = InvalidRequestError("pay:2 has a copy on worker-1", hint="zbroker topics describe pay")
    got = error_for(sent.code, sent.wire_text)
    assert (type(got), got.message, got.hint) == (InvalidRequestError, sent.message, sent.hint)


@pytest.mark.parametrize("code", sorted(CODES))
def test_the_usual_hint_of_an_error_is_not_sent_and_is_there_all_the_same(code: int) -> None:
    sent = CODES[code]("what happened")
    assert sent.wire_text == "what happened"
    assert str(error_for(code, sent.wire_text)) == str(sent)


def test_a_reply_without_text_gives_the_words_that_belong_to_the_number() -> None:
    for code, kind in CODES.items():
        assert str(error_for(code)) == str(kind())


def test_an_error_of_a_newer_broker_is_named_by_its_number() -> None:
    got = error_for(31_999, "the moon is full\nwait")
    assert type(got) is UnknownError
    assert all(part in str(got) for part in ("31999", "the moon is full", "wait"))
