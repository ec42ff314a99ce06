"""Streaming: pieces always join to the whole decoding, stop strings cut it, and the cost of a token is bounded."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from ernie_export.runtime.text_stream import REPLACEMENT, TextStream, byte_token_ids

WORDS = ["▁", "▁▁", "▁a", "b", "▁the", "END", "EN", "D", "\n", "�", "你", "好", "▁.", "e\u0301", "<s>", "</s>", "<pad>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<s>", "</s>", "<pad>"]


def llama_like() -> Tokenizer:
    """Decodes as a tokenizer of the Llama class: ▁ is a space, bytes are a fallback, one leading space is dropped."""
    vocabulary = {piece: id for id, piece in enumerate(WORDS + BYTES)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


LLAMA = llama_like()
VOCABULARY = LLAMA.get_vocab()
LLAMA_BYTES = byte_token_ids(VOCABULARY)
# A byte-level decoder: every token is some bytes, the whole is read as UTF-8 with replacement.
CHUNKS = [bytes([value]) for value in range(256)] + [
    b" a",
    b"END",
    "你好".encode(),
    "好".encode()[:2],
    b"\x80\x80",
    b"",
]


def llama_decode(ids: list[int]) -> str:
    return LLAMA.decode(ids, skip_special_tokens=True)


def byte_level_decode(ids: list[int]) -> str:
    return b"".join(CHUNKS[id] for id in ids).decode("utf-8", errors="replace")


def llama_ids(*pieces: str) -> list[int]:
    return [VOCABULARY[piece] for piece in pieces]


def utf8(text: str) -> list[int]:
    """The byte tokens of `text`."""
    return [VOCABULARY[BYTES[value]] for value in text.encode()]


def llama_stream(*stop: str) -> TextStream:
    return TextStream(llama_decode, stop, LLAMA_BYTES)


def expected_text(whole: str, stop: tuple[str, ...]) -> str:
    """`whole` cut before the stop string that is complete first; of those, before the longest."""
    for end in range(len(whole) + 1):
        complete = [text for text in stop if whole[:end].endswith(text)]
        if complete:
            return whole[: end - max(map(len, complete))]
    return whole


def run(stream: TextStream, ids: list[int]) -> list[str]:
    """Pieces of a generation that ends where the stream stops."""
    pieces = []
    for id in ids:
        pieces.append(stream.push(id))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


words = st.sampled_from(llama_ids(*WORDS))
byte_tokens = st.sampled_from(["é", "你", "😀", "\n", "a", "\n\n"]).map(utf8)
llama_answers = st.lists(
    st.one_of(words.map(lambda id: [id]), byte_tokens, st.sampled_from(sorted(LLAMA_BYTES)).map(lambda id: [id])),
    max_size=30,
).map(lambda parts: sum(parts, []))
stops = st.lists(
    st.sampled_from(["END", "EN", " a", "\n", "\n\n", "你好", "ENDEN", "b b", "😀", "aa"]), max_size=3
).map(tuple)


@settings(max_examples=500, deadline=None)
@given(llama_answers)
@example(llama_ids("▁a", "<s>", "▁a"))
@example(llama_ids("<s>", "▁a", *["<pad>"] * 20, "▁a", "▁", "▁a"))
@example(llama_ids("▁", "▁", "▁▁", "▁a"))
@example([*utf8("你"), *utf8("\n"), VOCABULARY["<0xF0>"], *llama_ids("</s>"), *utf8("a"), *llama_ids("b")])
def test_pieces_join_to_the_whole(ids):
    stream = llama_stream()
    assert "".join(run(stream, ids)) == llama_decode(ids) == stream.text
    assert not stream.stopped


@settings(max_examples=500, deadline=None)
@given(llama_answers, stops)
def test_stop_strings_cut_the_whole(ids, stop):
    stream = llama_stream(*stop)
    pieces = run(stream, ids)
    taken = ids[: len(pieces) - 1]
    whole = llama_decode(taken)
    assert "".join(pieces) == stream.text == expected_text(whole, stop)
    assert stream.stopped == any(text in whole for text in stop)
    # Stopped with the very token that completed the string: before it there is none, unless a run of bytes that was
    # not valid UTF-8 has become so since.
    if stream.stopped and not set(taken) & LLAMA_BYTES:
        assert not any(text in llama_decode(taken[:-1]) for text in stop)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, len(CHUNKS) - 1), max_size=40), stops)
@example([0xF0, 0x9F, 0x98, 0x80] * 3, ())
@example([0x80] * 40, ())
def test_byte_level_decoders_too(ids, stop):
    stream = TextStream(byte_level_decode, stop)
    pieces = run(stream, ids)
    assert "".join(pieces) == stream.text == expected_text(byte_level_decode(ids[: len(pieces) - 1]), stop)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=3), st.lists(st.text("ab", max_size=4), max_size=12))
@example(["aab"], ["aa", "ab"])
@example(["abab", "bab"], ["ab", "ab"])
def test_overlapping_stop_strings(stop, chunks):
    stream = TextStream(lambda ids: "".join(chunks[id] for id in ids), stop)
    run(stream, list(range(len(chunks))))
    assert stream.text == expected_text("".join(chunks), tuple(stop))


@pytest.mark.parametrize("before", range(20))
def test_a_character_is_whole_wherever_it_falls(before):
    stream = TextStream(byte_level_decode)
    text = "b" * before + "😀é你" * 5
    assert "".join(run(stream, list(text.encode()))) == text


def test_the_replacement_character_as_a_stop_string():
    stream = llama_stream(REPLACEMENT)
    run(stream, [*utf8("😀"), *llama_ids("b", "�", "b")])
    assert stream.stopped and stream.text == "😀b"


def test_text_is_shown_at_once():
    stream = llama_stream("END")
    assert [stream.push(id) for id in llama_ids("▁the", "▁a", "b")] == ["the", " a", "b"]


def test_half_a_character_is_held_back():
    stream = llama_stream()
    ids = [*llama_ids("b"), *utf8("😀"), *llama_ids("▁a")]
    assert [stream.push(id) for id in ids] == ["b", "", "", "", "", "😀 a"]
    byte_level = TextStream(byte_level_decode)
    assert [byte_level.push(id) for id in "b😀".encode()] == ["b", "", "", "", "😀"]


def test_a_character_left_unfinished_comes_out_at_the_end():
    stream = llama_stream()
    assert [stream.push(id) for id in utf8("你")[:2]] == ["", ""]
    assert stream.finish() == REPLACEMENT * 2
    assert stream.finish() == ""


def test_a_stop_string_over_several_tokens():
    stream = llama_stream("ENDEN")
    assert [stream.push(id) for id in llama_ids("b", "EN", "D", "EN")] == ["b", "", "", ""]
    assert stream.stopped and stream.text == "b" and stream.finish() == ""


def test_a_beginning_that_does_not_become_the_stop_string_is_shown():
    stream = llama_stream("ENDEND")
    assert [stream.push(id) for id in llama_ids("b", "EN", "D", "b", "EN")] == ["b", "", "", "ENDb", ""]
    assert stream.finish() == "EN" and not stream.stopped


def test_a_stop_string_amid_a_token():
    stream = llama_stream("N")
    assert [stream.push(id) for id in llama_ids("b", "END", "b")] == ["b", "E", ""]
    assert stream.stopped and stream.text == "bE"


def test_a_line_feed_in_bytes_stops_at_once():
    stream = llama_stream("\n")
    assert [stream.push(id) for id in [*llama_ids("b"), *utf8("é\n")]] == ["b", "", "", "é"]
    assert stream.stopped


@pytest.mark.parametrize("kind", ["words", "specials", "broken bytes", "byte tokens", "spaces"])
def test_cost_of_a_token_is_bounded(kind):
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return byte_level_decode(ids) if kind == "broken bytes" else llama_decode(ids)

    ids = {
        "words": llama_ids("▁the", "b") * 500,
        "specials": llama_ids("<pad>", "</s>") * 500,
        "broken bytes": [0xE4] * 1000,
        "byte tokens": [*utf8("😀"), *llama_ids("b")] * 200,
        "spaces": llama_ids("▁") * 1000,
    }[kind]
    stream = TextStream(decode, ["END"], frozenset() if kind == "broken bytes" else LLAMA_BYTES)
    run(stream, ids)
    assert longest <= 20


def test_long_runs_of_bytes_are_decoded_once():
    calls = []

    def counted(ids):
        calls.append(len(ids))
        return llama_decode(ids)

    stream = TextStream(counted, (), LLAMA_BYTES)
    run(stream, utf8("😀") * 500)
    assert sum(calls) < 3 * 2000 + 10 and stream.text == "😀" * 500


def test_byte_tokens_are_found_by_their_form():
    assert byte_token_ids({"<0x0A>": 3, "<0xFF>": 4, "<0xff>": 5, "<0x0A>>": 6, "a": 7}) == {3, 4}
