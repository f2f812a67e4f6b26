"""Kernels that find, cut and join the rows of CSV text held in a byte array.

Text is a one-dimensional `numpy.ndarray` of uint8, positions are offsets into it. Rows end in LF; a character after the
escape character is part of its field, whatever it is. Nothing here parses or formats a value: rows move as bytes.

Short rows are joined in a padded matrix, each part of a row in columns of its own, from which the padding is then
removed: copies of a fixed size and one boolean selection are what numpy does fastest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from . import kernels

LF = 10
CR = 13
MAX_ID_DIGITS = 9
#: Text that is scanned or joined at a time: small enough for the processor's cache.
BLOCK_BYTES = 1 << 20
#: Rows with more bytes, or with more padding for each of their bytes, are joined slice by slice.
LONG_ROW_BYTES = 512
#: Rows that follow each other and get the same text are joined at a time, if there are this many or more on average.
MIN_RUN_ROWS = 6
MAX_PADDING = 6


class RowError(ValueError):
    """A row that cannot be read: ``row`` is its index in the text."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Spans:
    """A part of each row that is taken from the text.

    Attributes
    ----------
    starts, ends : `numpy.ndarray`, int, (number of rows,)
        Offsets of the first byte and after the last byte.
    """

    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Texts:
    """A part of each joined row that is taken from a table.

    Attributes
    ----------
    table : `numpy.ndarray`, uint8, (k, width)
        The texts, padded with anything on their right.
    lengths : `numpy.ndarray`, int64, (k,)
        Their lengths.
    codes : `numpy.ndarray`, int, (number of joined rows,)
        Which of them each joined row gets.
    """

    table: np.ndarray
    lengths: np.ndarray
    codes: np.ndarray

    @classmethod
    def make(cls, texts: Sequence[bytes] | np.ndarray, codes: np.ndarray) -> Texts:
        """Put texts, which must not end in NUL, in a table."""
        strings = np.asarray(texts, dtype=np.bytes_)
        return cls(strings.view(np.uint8).reshape(len(strings), -1), np.strings.str_len(strings), codes)


# -- finding rows and fields --------------------------------------------------------------------------------------------


def is_escaped(data: np.ndarray, positions: np.ndarray, escape: int | None) -> np.ndarray:
    """Whether the bytes at ``positions`` follow an escape character that is not itself escaped (bool)."""
    if escape is None or not len(positions):
        return np.zeros(len(positions), dtype=bool)
    result = (data[positions - 1] == escape) & (positions > 0)
    pending = np.flatnonzero(result)
    distance = 2
    while len(pending):
        before = positions[pending] - distance
        pending = pending[(before >= 0) & (data[before] == escape)]
        result[pending] ^= True
        distance += 1
    return result


def _find(data: np.ndarray, values: Sequence[int], escape: int | None) -> np.ndarray:
    """Ascending offsets (int64) of all bytes that have one of the values and are not escaped."""
    found = [np.empty(0, dtype=np.int64)]
    compiled = kernels.load() if len(values) <= 2 and data.flags.c_contiguous else None
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        if compiled is not None:
            positions = compiled.find_bytes(block, values[0], values[-1], start)
        else:
            mask = block == values[0]
            for value in values[1:]:
                mask |= block == value
            positions = np.flatnonzero(mask)
            positions += start
        if escape is not None and (data[max(start - 1, 0) : start + BLOCK_BYTES] == escape).any():
            positions = positions[~is_escaped(data, positions, escape)]
        found.append(positions)
    return np.concatenate(found) if len(found) != 2 else found[1]


def row_ends(data: np.ndarray, escape: int | None = None) -> np.ndarray:
    """Where rows end.

    Parameters
    ----------
    data : `numpy.ndarray`, uint8, (n,)
    escape : `int`, optional
        Escape character; a line end that follows it does not end the row.

    Returns
    -------
    ends : `numpy.ndarray`, int64, (number of rows,)
        Offset after the LF of each row. Text after the last LF is not a row.
    """
    return _find(data, [LF], escape) + 1


def field_ends(
    data: np.ndarray, num_fields: int, delimiter: int, escape: int | None = None, quote: int | None = None
) -> np.ndarray:
    """Where fields end.

    A field that begins with the quote character ends at the first delimiter or line end that follows a closing quote;
    two quotes inside of it do not close it. Elsewhere a quote has no meaning.

    Parameters
    ----------
    data : `numpy.ndarray`, uint8, (n,)
        Whole rows; the last byte is a LF.
    num_fields : `int`
        Fields of every row.
    delimiter, escape, quote : `int`
        Characters of the dialect; no escape or quote character if `None`.

    Returns
    -------
    ends : `numpy.ndarray`, int64, (number of rows, num_fields)
        Offset of the delimiter, or of the LF, that ends each field.

    Raises
    ------
    RowError
        If a row has another number of fields, or a quote or an escape is open at its end.
    """
    stops = _find(data, [delimiter, LF], escape)
    ends_line = data[stops] == LF
    num_rows, rest = divmod(len(stops), num_fields)
    has_quotes = quote is not None and (data == quote).any()
    is_regular = not rest and not has_quotes and np.count_nonzero(ends_line) == num_rows > 0
    if is_regular and ends_line[num_fields - 1 :: num_fields].all() and stops[-1] == len(data) - 1:
        return stops.reshape(-1, num_fields)
    last = np.flatnonzero(ends_line)
    if not len(last) or stops[-1] != len(data) - 1:
        raise RowError(len(last), "the last character is an escape character: it must be followed by another one")
    quotes = _find(data, [quote], escape) if has_quotes else np.empty(0, dtype=np.int64)
    counts = np.diff(last, prepend=-1)
    line_ends = stops[last]
    plain = np.ones(len(last), dtype=bool)
    plain[np.searchsorted(line_ends, quotes)] = False
    wrong = np.flatnonzero(plain & (counts != num_fields))
    if len(wrong):
        raise RowError(int(wrong[0]), f"{counts[wrong[0]]} fields instead of {num_fields}")
    ends = np.empty((len(last), num_fields), dtype=np.int64)
    ends[plain] = stops[np.repeat(plain, counts)].reshape(-1, num_fields)
    quoted = np.flatnonzero(~plain)
    starts = np.concatenate([[0], line_ends[:-1] + 1])[quoted]
    ends[quoted] = _quoted_field_ends(data, num_fields, stops, quotes, starts, line_ends[quoted], quoted)
    return ends


def _quoted_field_ends(
    data: np.ndarray,
    num_fields: int,
    stops: np.ndarray,
    quotes: np.ndarray,
    starts: np.ndarray,
    line_ends: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """Where the fields end of the rows that have quotes: one field of all rows after the other.

    ``stops`` and ``quotes`` are the offsets of all delimiters and line ends, and of all quotes; ``starts``,
    ``line_ends`` and ``rows`` are those of the rows with quotes.
    """
    # A field can only be closed by the last of a run of quotes, if a stop follows. Inside of a field they count in
    # pairs, so that the run must be of odd length, or of even length if its first quote is the one that opens the
    # field.
    first = np.flatnonzero(np.diff(quotes, prepend=-2) != 1)
    lengths = np.diff(first, append=len(quotes))
    run_starts = quotes[first]
    after = run_starts + lengths
    before_stop = stops[np.minimum(np.searchsorted(stops, after), len(stops) - 1)] == after
    closing = np.flatnonzero(before_stop & (lengths % 2 == 1))
    never = len(data)
    closing_starts = np.append(run_starts[closing], never)
    closing_stops = np.append(after[closing], never)

    ends = np.empty((len(starts), num_fields), dtype=np.int64)
    for field in range(num_fields):
        run = np.minimum(np.searchsorted(run_starts, starts), len(run_starts) - 1)
        opened = run_starts[run] == starts
        at_once = opened & before_stop[run] & (lengths[run] % 2 == 0)
        stop = stops[np.searchsorted(stops, starts)]
        later = closing_stops[np.searchsorted(closing_starts, starts + 1)]
        stop = np.where(opened, np.where(at_once, after[run], later), stop)
        wrong = np.flatnonzero(stop > line_ends)
        if len(wrong):
            raise RowError(
                int(rows[wrong[0]]),
                f"field {field + 1} begins with a quote, but no quote ends it before the line ends "
                "(a line end inside of a field must be escaped)",
            )
        wrong = np.flatnonzero((stop == line_ends) != (field == num_fields - 1))
        if len(wrong):
            found = str(field + 1) if field < num_fields - 1 else "more"
            raise RowError(int(rows[wrong[0]]), f"{found} fields instead of {num_fields}")
        ends[:, field] = stop
        starts = stop + 1
    return ends


# -- joining rows -------------------------------------------------------------------------------------------------------


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``arange(start, start + length)`` of each pair, one after the other (int64)."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def _columns(matrix: np.ndarray, first: int, width: int) -> np.ndarray:
    """Columns of a matrix of bytes as one vector of items that numpy copies whole."""
    return np.ndarray((len(matrix),), dtype=f"V{width}", buffer=matrix, offset=first, strides=(matrix.shape[1],))


def _copy_windows(data: np.ndarray, starts: np.ndarray, matrix: np.ndarray, first: int, width: int) -> None:
    """Copy ``width`` bytes from each start to columns of a matrix; what lies beyond the end of the text is undefined."""
    last = len(data) - width
    if last < 0:
        data, last = np.concatenate([data, np.zeros(-last, dtype=np.uint8)]), 0
    windows = np.ndarray((last + 1,), dtype=f"V{width}", buffer=data, strides=(1,))
    _columns(matrix, first, width)[:] = windows[np.minimum(starts, last)]
    late = np.flatnonzero(starts > last)
    if len(late):
        tail = np.concatenate([data[last:], np.zeros(width, dtype=np.uint8)])
        matrix[late, first : first + width] = tail[(starts[late] - last)[:, None] + np.arange(width)]


@functools.lru_cache(maxsize=64)
def _masks(width: int) -> np.ndarray:
    """For each length up to ``width``, that many true bytes and then false ones, as one item."""
    return np.tri(width + 1, width, -1, dtype=bool).view(f"V{width}").ravel()


def _mark(mask: np.ndarray, lengths: np.ndarray, first: int, width: int) -> None:
    """Set the first ``lengths`` of some columns of a boolean matrix in each row, and clear the others."""
    if width <= 256:
        _columns(mask, first, width)[:] = _masks(width)[lengths]
        return
    shortest = first + int(lengths.min())
    mask[:, first:shortest] = True
    columns = np.arange(shortest - first, width, dtype=np.min_scalar_type(width))
    np.less(columns, lengths.astype(columns.dtype)[:, None], out=mask[:, shortest : first + width])


def padded_fields(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """Fields of at most ``width`` bytes as a matrix (uint8, (rows, width)), padded with zeros on the right."""
    matrix = np.empty((len(starts), width), dtype=np.uint8)
    if len(starts):
        _copy_windows(data, starts, matrix, 0, width)
        lengths = ends - starts
        shortest, longest = int(lengths.min()), int(lengths.max())
        matrix[:, longest:] = 0
        matrix[:, shortest:longest] *= np.arange(shortest, longest) < lengths[:, None]
    return matrix


def parse_ids(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Parse ids of chunks or sub-chunks: fields of 1 to 9 decimal digits and nothing else.

    Returns
    -------
    ids : `numpy.ndarray`, int32, (number of fields,)

    Raises
    ------
    RowError
        If a field is something else; ``row`` is its index.
    """
    lengths = ends - starts
    wrong = (lengths < 1) | (lengths > MAX_ID_DIGITS)
    ids = np.zeros(len(starts), dtype=np.int32)
    if len(starts):
        width = int(np.clip(lengths.max(), 1, MAX_ID_DIGITS))
        for column in padded_fields(data, starts, np.where(wrong, starts, ends), width).T:
            used = column != 0
            digit = column - ord("0")
            wrong |= used & (digit > 9)
            ids = np.where(used, ids * 10 + digit, ids)
    if wrong.any():
        row = int(np.argmax(wrong))
        value = data[starts[row] : ends[row]].tobytes().decode(errors="replace")
        raise RowError(row, f"{value!r} is not a number of 1 to {MAX_ID_DIGITS} digits")
    return ids


def parse_last_ids(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Parse ids that end at the given offsets and follow something that is not a digit (int32)."""
    ids = np.zeros(len(ends), dtype=np.int32)
    rows = np.arange(len(ends))
    for place in range(MAX_ID_DIGITS):
        digits = data[ends[rows] - 1 - place]
        is_digit = (digits >= ord("0")) & (digits <= ord("9")) & (ends[rows] > place)
        rows = rows[is_digit]
        ids[rows] += (digits[is_digit] - ord("0")) * np.int32(10**place)
    return ids


def join_parts(
    data: np.ndarray, parts: Sequence[Spans | Texts], rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Join rows of parts, in blocks of about 1 MiB.

    Parameters
    ----------
    data : `numpy.ndarray`, uint8, (n,), contiguous
        The text.
    parts : sequence of `Spans` or `Texts`
        What each joined row consists of, in this order.
    rows : `numpy.ndarray`, int, (m,)
        Which rows of the text (of `Spans`) are joined, in the order wanted; a row may be repeated or left out.

    Yields
    ------
    text : `numpy.ndarray`, uint8
        Whole joined rows; valid until the next one is asked for.
    ends : `numpy.ndarray`, int64, (rows in this block,)
        Offset in ``text`` after each of its rows.
    """
    spans = [part for part in parts if isinstance(part, Spans)]
    mean_bytes = 16 + sum(
        int((part.ends - part.starts).sum(dtype=np.int64)) // max(len(part.ends), 1) for part in spans
    )
    step = max(1, BLOCK_BYTES // mean_bytes)
    compiled = kernels.load()
    for begin in range(0, len(rows), step):
        block = slice(begin, begin + step)
        chosen = rows[block]
        sources, lengths = [], []
        for part in parts:
            if isinstance(part, Spans):
                starts = part.starts[chosen]
                sources.append((data, starts))
                lengths.append(part.ends[chosen] - starts)
            else:
                codes = part.codes[block]
                sources.append((part.table, codes))
                lengths.append(part.lengths[codes])
        ends = np.cumsum(sum(lengths[1:], lengths[0].astype(np.int64)))
        if compiled is not None:
            text = np.empty(ends[-1], dtype=np.uint8)
            compiled.join_parts(_addressed(sources, lengths), text)
            yield text, ends
            continue
        widths = [int(length.max()) for length in lengths]
        text = _join_runs(sources, lengths, ends) if len(parts) == 2 and len(spans) == 1 else None
        if text is not None:
            yield text, ends
        elif ends[-1] > LONG_ROW_BYTES * len(ends) or len(ends) * sum(widths) > MAX_PADDING * ends[-1]:
            yield _join_slices(sources, lengths), ends
        else:
            yield _join_padded(sources, lengths, widths), ends


def _addressed(
    sources: list[tuple[np.ndarray, np.ndarray]], lengths: list[np.ndarray]
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Parts as the compiled loop takes them."""
    parts = []
    for (source, where), length in zip(sources, lengths, strict=True):
        starts = where.astype(np.int64) * (source.shape[1] if source.ndim == 2 else 1)
        parts.append((kernels.address(source), starts, np.ascontiguousarray(length, dtype=np.int64)))
    return parts


def _join_padded(
    sources: list[tuple[np.ndarray, np.ndarray]], lengths: list[np.ndarray], widths: list[int]
) -> np.ndarray:
    """Join parts that are short: side by side in a matrix, then without the padding."""
    matrix = np.empty((len(lengths[0]), sum(widths)), dtype=np.uint8)
    mask = np.empty(matrix.shape, dtype=bool)
    column = 0
    for (source, where), length, width in zip(sources, lengths, widths, strict=True):
        if not width:
            continue
        if source.ndim == 1:
            _copy_windows(source, where, matrix, column, width)
        else:
            _columns(matrix, column, width)[:] = _columns(source, 0, width)[where]
        _mark(mask, length, column, width)
        column += width
    return matrix[mask]


def _join_runs(
    sources: list[tuple[np.ndarray, np.ndarray]], lengths: list[np.ndarray], ends: np.ndarray
) -> np.ndarray | None:
    """Join rows with what replaces their line ends, if they mostly stand in the text in runs with the same replacement.

    This is the way of child tables, in which the rows of an object follow each other. `None`: the rows are not so.
    """
    (data, starts), (table, codes) = sources
    if data.ndim != 1:
        return None
    # One byte between two rows can only be the line end.
    breaks = (starts[1:] != starts[:-1] + lengths[0][:-1] + 1) | (codes[1:] != codes[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], breaks]))
    if len(firsts) > len(starts) // MIN_RUN_ROWS:
        return None
    lasts = np.append(firsts[1:], len(starts)) - 1
    view = memoryview(data)
    suffixes = {code: table[code].tobytes() for code in np.unique(codes[firsts]).tolist()}
    texts: list[bytes] = []
    begins, stops = starts[firsts].tolist(), (starts + lengths[0])[lasts].tolist()
    for begin, stop, code, size in zip(begins, stops, codes[firsts].tolist(), lengths[1][firsts].tolist(), strict=True):
        suffix = suffixes[code][:size]
        texts += (view[begin:stop].tobytes().replace(b"\n", suffix), suffix)
    text = b"".join(texts)
    # A line end inside of a field has been replaced, too.
    return np.frombuffer(text, dtype=np.uint8) if len(text) == ends[-1] else None


def _join_slices(sources: list[tuple[np.ndarray, np.ndarray]], lengths: list[np.ndarray]) -> np.ndarray:
    """Join parts that are long, or of very different lengths: slice by slice."""
    slices: list[memoryview | bytes] = [b""] * (len(sources) * len(lengths[0]))
    for place, ((source, where), length) in enumerate(zip(sources, lengths, strict=True)):
        if source.ndim == 1:
            view = memoryview(source)
            bounds = zip(where.tolist(), (where + length).tolist(), strict=True)
            slices[place :: len(sources)] = [view[start:end] for start, end in bounds]
        else:
            sizes = dict(zip(where.tolist(), length.tolist(), strict=True))
            texts = {code: source[code, :size].tobytes() for code, size in sizes.items()}
            slices[place :: len(sources)] = [texts[code] for code in where.tolist()]
    return np.frombuffer(b"".join(slices), dtype=np.uint8)


def gather_rows(
    data: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    rows: np.ndarray,
    suffix_table: Sequence[bytes],
    suffix_codes: np.ndarray,
) -> np.ndarray:
    """Join ``data[starts[r]:ends[r]] + suffix`` of the given rows in the given order.

    Parameters
    ----------
    data : `numpy.ndarray`, uint8, (n,), contiguous
    starts, ends : `numpy.ndarray`, int, (number of rows,)
        The bytes of each row to take: without its line end, if the suffix brings one.
    rows : `numpy.ndarray`, int, (m,)
        Rows to take; a row may be repeated or left out.
    suffix_table : sequence of `bytes`
        The different suffixes.
    suffix_codes : `numpy.ndarray`, int, (m,)
        Which suffix each of the m joined rows gets.

    Returns
    -------
    text : `numpy.ndarray`, uint8
        For more than fits in memory, write the blocks of `join_parts` one by one.
    """
    parts = [Spans(starts, ends), Texts.make(suffix_table, suffix_codes)]
    blocks = [text for text, _ in join_parts(data, parts, rows)]
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.uint8)
