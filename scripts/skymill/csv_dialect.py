"""CSV dialects: how fields are delimited, quoted, escaped and left NULL, and the change from one dialect to another.

The meaning of the characters is the one of the Qserv partitioner: after the escape character ``0 b f n r t v Z`` stand
for control characters and any other character for itself; a field that begins with the quote character is quoted, and
two quotes inside of it stand for one; a field that is the NULL string, byte by byte, is NULL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .rows import CR, LF, RowError, Spans, Texts, field_ends, join_parts, ranges

#: What the characters after an escape character stand for, by their code.
UNESCAPE = np.arange(256, dtype=np.uint8)
for _letter, _meaning in zip(b"0bfnrtvZ", b"\0\b\f\n\r\t\v\x1a", strict=True):
    UNESCAPE[_letter] = _meaning
#: Characters that would be ambiguous after an escape character.
ESCAPE_LETTERS = b"0bfnrtvNZ"


class Fields(NamedTuple):
    """Fields of a text: ``data[starts[i]:ends[i]]``."""

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def packed(self) -> Fields:
        """The same fields without gaps, in ascending order."""
        if (
            len(self.starts)
            and self.starts[0] == 0
            and self.ends[-1] == len(self.data)
            and (self.starts[1:] == self.ends[:-1]).all()
        ):
            return self
        blocks = [
            text for text, _ in join_parts(self.data, [Spans(self.starts, self.ends)], np.arange(len(self.starts)))
        ]
        ends = np.cumsum(self.ends - self.starts)
        return Fields(np.concatenate([np.empty(0, np.uint8), *blocks]), ends - (self.ends - self.starts), ends)

    def value(self, index: int) -> str:
        """One field, for a message."""
        return self.data[self.starts[index] : self.ends[index]].tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Dialect:
    """A CSV dialect.

    Parameters
    ----------
    null : `bytes`
        The text of a NULL field.
    delimiter : `int`
        Character between fields.
    quote, escape : `int` or `None`
        Quote and escape characters, if there are any.

    Raises
    ------
    ValueError
        If characters are equal, or cannot serve.
    """

    null: bytes
    delimiter: int
    quote: int | None
    escape: int | None

    def __post_init__(self) -> None:
        roles = {"delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
        used = {role: code for role, code in roles.items() if code is not None}
        for role, code in used.items():
            allowed = "it must be one ASCII character, no line end and no NUL"
            if not 0 < code < 128 or code in (LF, CR):
                raise ValueError(f"{role} = {chr(code)!r}: {allowed}")
            if code in b"0123456789":
                raise ValueError(f"{role} = {chr(code)!r}: it must not be a digit, which chunk numbers are made of")
            if self.escape is not None and code in ESCAPE_LETTERS:
                raise ValueError(f"{role} = {chr(code)!r}: with an escape character it must not be one of 0bfnrtvNZ")
        if len(set(used.values())) != len(used):
            values = ", ".join(f"{role} = {chr(code)!r}" for role, code in used.items())
            raise ValueError(f"{values}: these characters must differ")
        if any(code in self.null for code in (LF, CR, self.delimiter)):
            raise ValueError(
                f"null = {self.null.decode(errors='replace')!r}: no delimiter and no line end may be in it"
            )

    def reduced(self, text: bytes) -> Dialect:
        """The same dialect without the quote and escape characters that do not occur in the text: it is faster to read."""
        quote, escape = (
            None if code is None or text.find(bytes([code])) < 0 else code for code in (self.quote, self.escape)
        )
        return replace(self, quote=quote, escape=escape)

    def field_ends(self, data: np.ndarray, num_fields: int) -> np.ndarray:
        """Where fields end; see `skymill.rows.field_ends`."""
        return field_ends(data, num_fields, self.delimiter, self.escape, self.quote)

    def is_null(self, fields: Fields) -> np.ndarray:
        """Which fields are NULL (bool)."""
        result = fields.ends - fields.starts == len(self.null)
        candidates = np.flatnonzero(result)
        null = np.frombuffer(self.null, dtype=np.uint8)
        if len(candidates) and len(null):
            texts = fields.data[fields.starts[candidates][:, None] + np.arange(len(null))]
            result[candidates] = (texts == null).all(axis=1)
        return result

    def is_encoded(self, fields: Fields) -> np.ndarray:
        """Which fields do not stand for themselves, because they are quoted or have an escape in them (bool)."""
        result = _contains(fields, [self.escape])
        if self.quote is not None and len(fields.data):
            first = fields.data[np.minimum(fields.starts, len(fields.data) - 1)]
            result |= (first == self.quote) & (fields.ends > fields.starts)
        return result

    def decode(self, fields: Fields) -> Fields:
        """The values of fields: unquoted and unescaped; NULL is not looked for."""
        encoded = np.flatnonzero(self.is_encoded(fields))
        if not len(encoded):
            return fields
        return _replace(fields, encoded, *self._decode(*_take(fields, encoded)))

    def _decode(self, text: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode fields that lie without a gap in ``text``."""
        ends = np.cumsum(lengths)
        starts = ends - lengths
        keep = np.ones(len(text), dtype=bool)
        literal = np.zeros(len(text), dtype=bool)
        quoted = np.zeros(len(lengths), dtype=bool)
        if self.quote is not None:
            quoted = (lengths > 0) & (text[np.minimum(starts, len(text) - 1)] == self.quote)
        keep[starts[quoted]] = False
        values = text
        if self.escape is not None:
            # In a run of escape characters every second one is escaped by the one before it.
            positions = np.flatnonzero(text == self.escape)
            escapes = positions[_place_in_run(positions, np.searchsorted(ends, positions, side="right")) % 2 == 0]
            escapes = escapes[escapes + 1 < ends[np.searchsorted(ends, escapes, side="right")]]
            keep[escapes] = False
            literal[escapes + 1] = True
            values = np.where(literal, UNESCAPE[text], text)
        if quoted.any():
            positions = np.flatnonzero((text == self.quote) & ~literal & keep)
            owner = np.searchsorted(ends, positions, side="right")
            positions, owner = positions[quoted[owner]], owner[quoted[owner]]
            doubled = _place_in_run(positions, owner) % 2 == 1
            keep[positions[doubled | (positions == ends[owner] - 1)]] = False
        return values[keep], _sums(keep, starts, ends)

    def encode(self, fields: Fields) -> Fields:
        """The text of values in this dialect; the inverse of `decode`.

        Raises
        ------
        RowError
            If a value cannot be written in this dialect; ``row`` is its index.
        """
        special = _contains(fields, [LF, CR, self.delimiter, self.quote, self.escape])
        ambiguous = self.is_null(fields) & ~special
        changed = np.flatnonzero(special | ambiguous)
        if not len(changed):
            return fields
        if self.quote is None:
            _refuse(fields, ambiguous, "is the text of NULL in the output dialect, which has no quote character")
        if self.escape is None:
            _refuse(
                fields, _contains(fields, [LF, CR]), "holds a line end, and the output dialect has no escape character"
            )
            if self.quote is None:
                _refuse(
                    fields, special, "holds the delimiter of the output dialect, which has no quotes and no escapes"
                )
        return _replace(fields, changed, *self._encode(*_take(fields, changed), ambiguous[changed]))

    def _encode(self, text: np.ndarray, lengths: np.ndarray, quoted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode values that lie without a gap in ``text``; ``quoted`` ones are put in quotes for being ambiguous."""
        ends = np.cumsum(lengths)
        if self.escape is not None:
            mask = np.isin(
                text, [code for code in (LF, CR, self.delimiter, self.quote, self.escape) if code is not None]
            )
            filling = self.escape
            text = np.where(text == LF, np.uint8(ord("n")), np.where(text == CR, np.uint8(ord("r")), text))
        else:
            mask = text == self.quote
            filling = self.quote
            quoted = np.ones(len(lengths), dtype=bool)
        # Where one field ends and the next begins, the closing quote must come first.
        quotes = np.concatenate([ends[quoted], (ends - lengths)[quoted]])
        positions = np.concatenate([quotes, np.flatnonzero(mask)])
        fillings = np.full(len(positions), filling, dtype=np.uint8)
        if len(quotes):
            fillings[: len(quotes)] = self.quote
        lengths = lengths + _sums(mask, ends - lengths, ends) + 2 * quoted
        return np.insert(text, positions, fillings), lengths


def _refuse(fields: Fields, wrong: np.ndarray, reason: str) -> None:
    """Raise an error if a field is wrong."""
    if wrong.any():
        index = int(np.argmax(wrong))
        raise RowError(index, f"the value {fields.value(index)!r} cannot be written: it {reason}")


def _contains(fields: Fields, codes: list[int | None]) -> np.ndarray:
    """Which fields have one of the characters in them (bool); fields ascend in the text."""
    result = np.zeros(len(fields.starts), dtype=bool)
    if all(code is None for code in codes):
        return result
    mask = np.zeros(len(fields.data), dtype=bool)
    for code in codes:
        if code is not None:
            mask |= fields.data == code
    if not mask.any():
        return result
    positions = np.flatnonzero(mask)
    owner = np.searchsorted(fields.ends, positions, side="right")
    positions, owner = positions[owner < len(result)], owner[owner < len(result)]
    result[owner[fields.starts[owner] <= positions]] = True
    return result


def _place_in_run(positions: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The place of each position in its run of adjacent positions of one owner, counted from 0."""
    index = np.arange(len(positions))
    begins = (np.diff(positions, prepend=-2) != 1) | (np.diff(owner, prepend=-1) != 0)
    return index - np.maximum.accumulate(np.where(begins, index, 0))


def _sums(mask: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """How many are true between each start and end."""
    total = np.concatenate([[0], np.cumsum(mask)])
    return total[ends] - total[starts]


def _take(fields: Fields, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some fields without gaps, and their lengths."""
    lengths = fields.ends[chosen] - fields.starts[chosen]
    return fields.data[ranges(fields.starts[chosen], lengths)], lengths


def _replace(fields: Fields, chosen: np.ndarray, text: np.ndarray, lengths: np.ndarray) -> Fields:
    """Fields of which some are replaced by others that lie without gaps in ``text``: these are put behind the others."""
    starts, ends = fields.starts.copy(), fields.ends.copy()
    ends[chosen] = len(fields.data) + np.cumsum(lengths)
    starts[chosen] = ends[chosen] - lengths
    return Fields(np.concatenate([fields.data, text]), starts, ends)


def field_starts(ends: np.ndarray) -> np.ndarray:
    """Where fields start that end at ``ends`` (int64, (rows, fields), as `skymill.rows.field_ends` has them)."""
    starts = np.empty_like(ends)
    starts.ravel()[0:1] = 0
    np.add(ends.ravel()[:-1], 1, out=starts.ravel()[1:])
    return starts


def recode(
    data: np.ndarray, ends: np.ndarray, used: np.ndarray, source: Dialect, target: Dialect
) -> tuple[np.ndarray, np.ndarray]:
    """Change text from one dialect to another.

    Parameters
    ----------
    data : `numpy.ndarray`, uint8, (n,)
        Whole rows in the dialect ``source``.
    ends : `numpy.ndarray`, int64, (rows, fields)
        Where their fields end.
    used : `numpy.ndarray`, bool, (fields,)
        Which fields matter; others may come out as anything, so that a field can be dropped that cannot be written.
    source, target : `Dialect`

    Returns
    -------
    data, ends
        The rows in the dialect ``target``, and where their fields end.

    Raises
    ------
    RowError
        If a value cannot be written in the dialect ``target``.
    """
    num_fields = ends.shape[1]
    fields = Fields(data, field_starts(ends).ravel(), ends.ravel())
    used = np.tile(used, len(ends))
    null = source.is_null(fields) & used
    changed = source.is_encoded(fields) | target.is_null(fields)
    changed |= _contains(fields, [CR, target.delimiter, target.quote, target.escape])
    changed = np.flatnonzero(changed & used & ~null)
    if len(changed):
        try:
            some = source.decode(Fields(data, fields.starts[changed], fields.ends[changed]))
            some = target.encode(some.packed())
        except RowError as error:
            raise RowError(int(changed[error.row]) // num_fields, str(error)) from None
        fields = _replace(fields, changed, *_take(some, np.arange(len(changed))))
    null = np.flatnonzero(null)
    if len(null) and source.null != target.null:
        lengths = np.full(len(null), len(target.null))
        fields = _replace(fields, null, np.frombuffer(target.null * len(null), dtype=np.uint8), lengths)
    if fields.data is data:
        data = data.copy()
        data[ends[:, :-1]] = target.delimiter
        return data, ends
    last = (np.arange(len(fields.ends)) % num_fields == num_fields - 1).astype(np.int8)
    parts = [Spans(fields.starts, fields.ends), Texts.make([bytes([target.delimiter]), b"\n"], last)]
    text = np.concatenate([text for text, _ in join_parts(fields.data, parts, np.arange(len(last)))])
    return text, (np.cumsum(fields.ends - fields.starts + 1) - 1).reshape(ends.shape)
