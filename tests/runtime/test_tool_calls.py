"""Calls in an answer's text: found whole and in pieces alike, and what is no call stays text."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_export.runtime.tool_calls import MAX_CALL_LENGTH, MAX_DEPTH, ToolCall, ToolCallStream, find_tool_calls


def call(name: str = "f", arguments: object = None) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments or {}})}\n</tool_call>\n"


def plain(found: tuple[str, list[ToolCall]]) -> tuple[str, list[tuple[str, object]]]:
    return found[0], [(one.name, json.loads(one.arguments)) for one in found[1]]


def in_pieces(text: str, size: int) -> tuple[str, list[ToolCall]]:
    stream = ToolCallStream()
    found = [stream.push(text[start : start + size]) for start in range(0, len(text), size)] + [stream.finish()]
    return "".join(text for text, _ in found), [one for _, calls in found for one in calls]


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("", "", []),
        ("red", "red", []),
        ("  red \n", "  red \n", []),
        (call(), "", [("f", {})]),
        ("\n\n" + call("zoom", {"box": [1, 2]}), "", [("zoom", {"box": [1, 2]})]),
        ("I look closer.\n\n" + call(), "I look closer.", [("f", {})]),
        (call("f") + call("g", {"a": "ä\n"}), "", [("f", {}), ("g", {"a": "ä\n"})]),
        (call() + "\nand text", "and text", [("f", {})]),
        (call("f", {"a": '</tool_call> <tool_call> \\" '}), "", [("f", {"a": '</tool_call> <tool_call> \\" '})]),
        ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", {})]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a"', '<tool_call>{"name": "f", "arguments": {"a"', []),
        ("<tool_call>{no}</tool_call>", "<tool_call>{no}</tool_call>", []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>',) * 2 + ([],),
        ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',) * 2 + ([],),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',) * 2 + ([],),
        ("<tool_call>{no}</tool_call>\n" + call("g"), "<tool_call>{no}</tool_call>", [("g", {})]),
        ("<tool_call>" + call("g"), "<tool_call>", [("g", {})]),
        ("a < b <tool", "a < b <tool", []),
        ("red \n<tool_call>{no}</tool_call>", "red \n<tool_call>{no}</tool_call>", []),
        ('<tool_call>{"name": "f}</tool_call>\n' + call("g"), '<tool_call>{"name": "f}</tool_call>', [("g", {})]),
        ('<tool_call>{"a": "' + call("g"), '<tool_call>{"a": "', [("g", {})]),
        (call("f") + "<tool_call>\\" + call("g"), "<tool_call>\\", [("f", {}), ("g", {})]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_and_the_text_around_them(text, rest, calls, size):
    assert plain(in_pieces(text, size)) == (rest, calls)
    assert plain(find_tool_calls(text)) == (rest, calls)


PARTS = ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', '{"name": "', "\n", " ", "x", '"', "\\", "<"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


@given(TEXTS, st.integers(1, 9))
def test_pieces_of_any_size_give_the_same(text, size):
    assert plain(in_pieces(text, size)) == plain(find_tool_calls(text))


@given(TEXTS, st.integers(1, 9))
def test_every_opening_tag_before_a_whole_call_begins_one(text, size):
    """As a search finds them that tries every opening tag anew, whatever the length."""
    rest, calls = in_pieces(text, size)
    expected_rest, expected_calls = try_every_tag(text)
    assert ["".join(rest.split()), len(calls)] == ["".join(expected_rest.split()), expected_calls]


def try_every_tag(text: str) -> tuple[str, int]:
    """Return the text that is in no call, and the number of calls."""
    rest = ""
    calls = 0
    while "<tool_call>" in text:
        before, _, text = text.partition("<tool_call>")
        rest += before
        body = text.lstrip()
        try:
            value, end = json.JSONDecoder().raw_decode(body)
        except ValueError:
            value, end = None, 0
        after = body[end:].lstrip()
        closed = after.startswith("</tool_call>") or not after
        if closed and isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"]:
            calls += 1
            text = after.removeprefix("</tool_call>")
        else:
            rest += "<tool_call>"
    return rest + text, calls


def test_arguments_are_bounded_in_size_and_depth():
    deep = '{"a": ' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert len(find_tool_calls(f'<tool_call>{{"name": "f", "arguments": {deep}}}</tool_call>')[1]) == 1
    for text in (
        f'<tool_call>{{"name": "f", "arguments": {{"a": {deep}}}}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 100_000,
        f'<tool_call>{{"name": "f", "arguments": {{"a": "{"x" * MAX_CALL_LENGTH}"}}}}</tool_call>',
    ):
        assert find_tool_calls(text) == (text, [])


@pytest.mark.parametrize("size", [37, 4096, 2**21])
@pytest.mark.parametrize(
    ("argument", "is_call"),
    [
        ("</tool_call>" * 20_000, True),
        ('\\" </tool_call>' * 12_000, True),
        ("</tool_call>" * 90_000, False),  # longer than a call may be
        ("<tool_call>" * 90_000, False),
    ],
    ids=["tags", "tags and escapes", "a megabyte of tags", "a megabyte of opening tags"],
)
def test_the_time_for_a_call_grows_with_its_length_alone(argument, is_call, size):
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": "{argument}"}}}}</tool_call>'
    began = time.process_time()
    rest, calls = in_pieces(text, size)
    assert time.process_time() - began < 5
    assert (rest == "" and len(calls) == 1) if is_call else not calls


@pytest.mark.parametrize("unit", ["<tool_call>", '<tool_call>{"a":"', '"<tool_call>', '<tool_call>\\"'])
@pytest.mark.parametrize("head", ["", '<tool_call>{"x": "'], ids=["alone", "within a string"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_time_for_many_opening_tags_grows_with_their_number_alone(unit, head, whole):
    """Four times as many take about four times as long; sixteen times where each is searched to the end."""

    def seconds(length: int) -> float:
        text = head + unit * (length // len(unit)) + '"</tool_call>'
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            in_pieces(text, len(text) if whole else 64)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(160_000) < 9 * seconds(40_000) + 0.02


def test_every_call_has_an_id_of_its_own():
    _, calls = find_tool_calls(call() + call())
    assert len({one.id for one in calls}) == 2 and all(one.id.startswith("call_") for one in calls)
