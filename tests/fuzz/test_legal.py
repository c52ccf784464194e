"""What the mutations start from: it is legal, and the tools that change it do what they say."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import legal
from tests.fuzz.methods import Kind, methods
from tests.fuzz.mutations import Case, Mutation, cases, single_cases
from tests.fuzz.pieces import DATABASE
from tests.fuzz.talking import EDITS, Edit, Message, Tokens, ask
from tests.fuzz.tree import parse, varint, write

CONVERSATIONS = {conversation.name: conversation for conversation in legal.conversations()}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_what_is_legal_is_answered(server, channel, name):
    conversation = CONVERSATIONS[name]
    tokens = Tokens()
    for call in conversation.calls:
        messages = [Message(tree) for tree in call.messages]
        outcome = await ask(channel, methods()[call.method], messages, tokens)
        if call is conversation.calls[-1] and conversation.refused:
            assert outcome.code.name == conversation.refused, outcome.details
        else:
            assert outcome.code is grpc.StatusCode.OK, outcome.details
            assert outcome.answers
        assert outcome.unreadable is None
    assert await server.complaint(channel) is None


def test_every_method_is_in_a_conversation():
    assert len(methods()) >= 17
    assert {methods()[name].kind for name in ("Commit", "RunQuery", "Listen")} == set(Kind)
    asked = {call.method for conversation in CONVERSATIONS.values() for call in conversation.calls}
    assert asked == set(methods())


def test_a_tree_writes_the_bytes_that_it_was_read_from():
    for conversation in CONVERSATIONS.values():
        for call in conversation.calls:
            for tree in call.messages:
                message = methods()[call.method].request.FromString(write(tree))
                assert write(parse(message)) == message.SerializeToString()
                assert write(tree.copy()) == write(tree)


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_written_as_protobuf_writes_them(number):
    message = methods()["PartitionQuery"].request(partition_count=number)
    assert message.SerializeToString() == (b"\x18" + varint(number) if number else b"")


@settings(deadline=None)
@given(cases())
def test_a_case_is_the_same_whenever_it_is_made(case):
    first, second = (
        [[message.data(Tokens()) for message in messages] for _, messages in case.calls()]
        for _ in range(2)
    )
    assert first == second
    assert all(len(simple.mutations) <= len(case.mutations) for simple in case.simpler())


def test_a_single_change_is_one():
    every = single_cases()
    assert len(every) == len(set(every)) > 20_000
    for case in every[::997]:
        before = Case(case.conversation).calls()
        after = case.calls()
        assert len(before) == len(after)


def test_a_change_everywhere_leaves_what_fits_together():
    def databases(*mutations):
        case = Case("a transaction that is given up", mutations)
        (begin, (first,)), _, (rollback, (last,)) = case.calls()
        for method, message in ((begin, first), (rollback, last)):
            yield methods()[method].request.FromString(message.data(Tokens())).database

    assert set(databases()) == {DATABASE}
    (other,) = set(databases(Mutation("everywhere", 0, 12)))
    assert other != DATABASE


@pytest.mark.parametrize(
    ("kind", "expected"),
    {
        "cut": b"ab",
        "remove": b"abe",
        "double": b"abcdcde",
        "insert": b"ab\x02cde",
        "fill": b"ab\xff\xffe",
        "flip": b"abg`e",
    }.items(),
)
def test_edits(kind, expected):
    assert Edit(kind, 2, 2).apply(b"abcde") == expected
    assert Edit(kind, 8, 2).apply(b"abcde") == expected
    assert kind in EDITS


def test_tokens_are_filled_in_where_they_are_known():
    begin, *_, last = CONVERSATIONS["a transaction"].calls
    tokens = Tokens()
    unfilled = write(tokens.fill(last.messages[0]))
    assert legal.TRANSACTION in unfilled
    tokens.learn(methods()[begin.method].response(transaction=b"the real one"))
    filled = methods()["Commit"].request.FromString(write(tokens.fill(last.messages[0])))
    assert filled.transaction == b"the real one"
    assert write(last.messages[0]) == unfilled
