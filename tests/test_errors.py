"""Errors that are kept: without a traceback, and each request with its own."""

import gc

import pytest

from gateway.errors import Charge, InternalError, UpstreamFailure, detach


def caught() -> Exception:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from OSError("third")
    except ValueError as error:
        return error


def test_a_detached_error_and_its_origins_have_no_traceback() -> None:
    error = caught()
    cause, context = error.__cause__, error.__context__
    assert detach(error) is error
    assert [e.__traceback__ for e in (error, cause, context) if e is not None] == [None] * 3
    assert error.__cause__ is error.__context__ is None


def test_errors_in_a_group_are_detached_with_it() -> None:
    inner = caught()
    detach(ExceptionGroup("both", [inner]))
    assert inner.__traceback__ is None


def test_errors_that_caused_each_other_are_detached() -> None:
    first, second = caught(), caught()
    first.__cause__, second.__cause__ = second, first
    detach(first)
    assert second.__traceback__ is None


def test_a_copy_of_an_error_is_answered_like_the_error() -> None:
    failure = UpstreamFailure(
        "no image", charge=Charge.PRESUMED, status=504, headers={"Retry-After": "1"}
    )
    copied = failure.copy()
    assert (type(copied), copied.args, vars(copied)) == (
        UpstreamFailure,
        failure.args,
        vars(failure),
    )


def test_requests_that_raise_copies_leave_the_shared_error_without_a_traceback() -> None:
    shared = InternalError()
    for _ in range(3):
        try:
            raise shared.copy()
        except InternalError:
            pass
    assert shared.__traceback__ is None


def test_a_detached_error_is_no_cycle() -> None:
    class Body:
        pass

    def answer() -> Exception:
        _body, error = Body(), InternalError()
        try:
            raise error
        except InternalError:
            return detach(error)

    gc.collect()
    gc.disable()
    try:
        kept = answer()
        assert not any(isinstance(found, Body) for found in gc.get_objects())
    finally:
        gc.enable()
    assert kept.__traceback__ is None


@pytest.mark.parametrize(
    "word", ["", "400", "E1001", "e_1", "input-images", "gpt-image-1.5", "a b"]
)
def test_a_plain_word_of_a_failure_is_shared(word: str) -> None:
    failure = UpstreamFailure("m", charge=Charge.FREE, code=word, type=word, param=word)
    shared = failure.shared()
    assert (shared.code, shared.param, shared.type) == (word, word, word or "server_error")


@pytest.mark.parametrize(
    "word", ["9be2d0", "user-9be2d0a7", "471108150", "u_123456", "a" * 65, "a:b", "Ann\n", "Ä", "-"]
)
def test_a_word_that_may_be_a_hash_or_a_number_is_not_shared(word: str) -> None:
    failure = UpstreamFailure("m", charge=Charge.FREE, code=word, type=word, param=word)
    shared = failure.shared()
    assert (shared.code, shared.param, shared.type) == (None, None, "server_error")
