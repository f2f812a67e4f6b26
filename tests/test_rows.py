"""The kernels that find and join rows of text, against slow and simple ones."""

import numpy as np
import pytest

from skymill import rows
from skymill.rows import (
    RowError,
    Spans,
    Texts,
    field_ends,
    gather_rows,
    join_parts,
    parse_ids,
    parse_last_ids,
    row_ends,
)


def as_bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def split_slowly(text: bytes, delimiter: int, escape: int | None, quote: int | None) -> list[list[int]]:
    """Where the fields of each row end, character by character; ValueError if a quote is open at the end of a line."""
    result, ends, start, position = [], [], 0, 0
    while position < len(text):
        if position == start and text[position] == quote:
            position += 1
            while not (text[position] == quote and text[position + 1] in (delimiter, 10)):
                if text[position] == 10:
                    raise ValueError("open quote")
                is_pair = text[position] == escape or (text[position] == quote and text[position + 1] == quote)
                position += 2 if is_pair else 1
            position += 1
        if text[position] == escape:
            position += 2
            continue
        if text[position] in (delimiter, 10):
            ends.append(position)
            start = position + 1
        if text[position] == 10:
            result.append(ends)
            ends = []
        position += 1
    return result


@pytest.mark.parametrize("escape", [None, ord("\\")])
@pytest.mark.parametrize("quote", [None, ord('"')])
def test_fields_are_found_as_by_a_state_machine(escape, quote):
    rng = np.random.default_rng(3)
    compared = 0
    for _ in range(4000):
        num_fields = int(rng.integers(1, 5))
        fields = [
            "".join(rng.choice(list('aab"",\\'), rng.integers(0, 6))) for _ in range(num_fields * rng.integers(1, 4))
        ]
        text = "".join(field + (",\n"[i % num_fields == num_fields - 1]) for i, field in enumerate(fields)).encode()
        try:
            expected = split_slowly(text, ord(","), escape, quote)
        except (ValueError, IndexError):
            expected = None
        if (
            expected is None
            or any(len(row) != num_fields for row in expected)
            or not expected
            or expected[-1][-1] != len(text) - 1
        ):
            with pytest.raises(RowError):
                field_ends(as_bytes(text), num_fields, ord(","), escape, quote)
        else:
            assert field_ends(as_bytes(text), num_fields, ord(","), escape, quote).tolist() == expected, text
            compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("text", "message", "row"),
    [
        (b"a,b\nc\n", "1 fields instead of 2", 1),
        (b"a,b\nc,d,e\n", "3 fields instead of 2", 1),
        (b'a,b\n"c,d\n', "field 1 begins with a quote", 1),
        (b'a,b\n"c",d,e\n', "more fields instead of 2", 1),
        (b'a,b\n"c"\n', "1 fields instead of 2", 1),
        (b"a,b\nc,d\\\n", "last character is an escape", 1),
        (b"\n", "1 fields instead of 2", 0),
    ],
)
def test_wrong_rows_are_named(text, message, row):
    with pytest.raises(RowError, match=message) as caught:
        field_ends(as_bytes(text), 2, ord(","), ord("\\"), ord('"'))
    assert caught.value.row == row


def test_row_ends_leave_out_escaped_line_ends(monkeypatch):
    text = b"a\nb\\\nc\n\\\\\nd\\\\\\\n\nrest"
    for block in (1, 3, 1 << 20):
        monkeypatch.setattr(rows, "BLOCK_BYTES", block)
        assert row_ends(as_bytes(text), ord("\\")).tolist() == [2, 7, 10, 16]
    assert len(row_ends(as_bytes(text))) == text.count(b"\n")
    assert len(row_ends(as_bytes(b""))) == 0


def random_text(lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of letters of the given lengths, each with a line end behind it, and where they start and end."""
    ends = np.cumsum(lengths + 1) - 1
    data = rng.integers(97, 123, int(ends[-1]) + 1, dtype=np.uint8)
    data[ends] = 10
    return data, ends - lengths, ends


LENGTHS = {
    "short": lambda rng: rng.integers(0, 60, 3000),
    "equal": lambda rng: np.full(3000, 17),
    "empty": lambda rng: np.zeros(300, dtype=np.int64),
    "long": lambda rng: rng.integers(3000, 6000, 300),
    "unequal": lambda rng: np.where(rng.random(3000) < 0.01, 40000, 5),
}
ORDERS = {
    "as they are": lambda n, rng: np.arange(n),
    "shuffled": lambda n, rng: rng.permutation(n),
    "some, repeated": lambda n, rng: rng.integers(0, n, n // 2),
    "none": lambda n, rng: np.empty(0, dtype=np.int64),
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("run", [1, 50])
def test_rows_are_gathered(lengths, order, run, monkeypatch):
    rng = np.random.default_rng(4)
    data, starts, ends = random_text(LENGTHS[lengths](rng), rng)
    chosen = ORDERS[order](len(starts), rng)
    suffixes = [b"\t1\n", b"\t12345\t67\n", b"\n", b""]
    codes = np.repeat(rng.integers(0, len(suffixes), len(chosen) // run + 1), run)[: len(chosen)]
    expected = [data[starts[r] : ends[r]].tobytes() + suffixes[c] for r, c in zip(chosen, codes, strict=True)]
    for dtype in (np.int64, np.int32):
        text = gather_rows(data, starts.astype(dtype), ends.astype(dtype), chosen, suffixes, codes)
        assert text.tobytes() == b"".join(expected)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 5000)
    parts = [Spans(starts, ends), Texts.make(suffixes, codes)]
    done = 0
    for text, row_stops in join_parts(data, parts, chosen):
        pieces = np.split(text, row_stops)
        assert [piece.tobytes() for piece in pieces[:-1]] == expected[done : done + len(row_stops)]
        assert not len(pieces[-1])
        done += len(row_stops)
    assert done == len(chosen)


def test_line_ends_inside_of_rows_are_kept():
    """Rows in a run are joined by replacing line ends: one that belongs to a row must not be replaced."""
    row = b"a\\\nb"
    data = as_bytes(b"".join(row + b"\n" for _ in range(1000)))
    starts = np.arange(1000) * 5
    text = gather_rows(data, starts, starts + 4, np.arange(1000), [b",7\n"], np.zeros(1000, dtype=np.int64))
    assert text.tobytes() == (row + b",7\n") * 1000


def test_many_parts_are_joined_in_order():
    rng = np.random.default_rng(5)
    data, starts, ends = random_text(rng.integers(1, 9, 500), rng)
    chosen = rng.permutation(500)
    parts = [
        Texts.make([b"<", b"<<"], np.arange(500) % 2),
        Spans(starts, ends),
        Texts.make([b"-"], np.zeros(500, dtype=np.int8)),
        Spans(starts, starts + 1),
        Texts.make([b"\n"], np.zeros(500, dtype=np.int8)),
    ]
    text = b"".join(block.tobytes() for block, _ in join_parts(data, parts, chosen))
    words = [data[starts[r] : ends[r]].tobytes() for r in chosen]
    assert text == b"".join(b"<" * (i % 2 + 1) + word + b"-" + word[:1] + b"\n" for i, word in enumerate(words))


def test_ids_are_parsed():
    data = as_bytes(b"0,7,007,123456789,x")
    starts, ends = np.array([0, 2, 4, 8]), np.array([1, 3, 7, 17])
    assert parse_ids(data, starts, ends).tolist() == [0, 7, 7, 123456789]
    assert len(parse_ids(data, starts[:0], ends[:0])) == 0
    assert parse_last_ids(data, ends).tolist() == [0, 7, 7, 123456789]
    assert parse_last_ids(data, np.array([19])).tolist() == [0]


@pytest.mark.parametrize("text", [b"", b"-1", b"1a", b"1234567890", b" 1", b"1.0"])
def test_what_is_no_id_is_refused(text):
    data = as_bytes(b"12," + text)
    with pytest.raises(RowError, match="is not a number of 1 to 9 digits") as caught:
        parse_ids(data, np.array([0, 3]), np.array([2, 3 + len(text)]))
    assert caught.value.row == 1
