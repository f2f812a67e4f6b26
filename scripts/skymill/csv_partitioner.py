"""The partitioner for CSV files: moves every row to the files of its chunk and of the overlaps that hold it.

Text is read in blocks, in which fields are found and positions or ids are parsed, and nothing else; rows are then
collected until there is a batch of them, ordered by chunk and written as bytes. Memory does not depend on the size of
the input, and a file is open only while a batch is appended to it: the sky has up to 10^5 chunks.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .chunker import Chunker, Placements
from .csv_dialect import Dialect, Fields, field_starts, recode
from .csv_input import MAX_READ_BYTES, Block, parse_coordinates, read_blocks, read_index
from .rows import RowError, Spans, Texts, join_parts, parse_ids, parse_last_ids, row_ends
from .staging import StagedDirectory

logger = logging.getLogger(__name__)

#: Text and rows that are collected before they are written: at least, and at most. Between, as long as the files of
#: chunks would get less text at a time than is worth opening them.
MIN_BATCH_BYTES = 16 << 20
MAX_BATCH_BYTES = 256 << 20
MAX_BATCH_ROWS = 8_000_000
MIN_APPEND_BYTES = 1 << 18


@dataclass(frozen=True)
class Options:
    """What to do with the rows.

    Attributes
    ----------
    in_fields, out_fields : sequence of `str`
        Names of the fields of the input and of the output; output fields that the input does not have are NULL.
    in_dialect, out_dialect : `Dialect`
    position_fields : (`str`, `str`) or `None`
        Input fields with RA and Dec [deg] by which rows are placed. `None`: rows go where the object is.
    id_field : `str` or `None`
        Input field with the id of the object.
    chunk_field, sub_chunk_field : `str` or `None`
        Output fields that get the ids of chunk and sub-chunk.
    index_path : `Path` or `None`
        Object index by which rows are placed if ``position_fields`` is `None`.
    chunker : `Chunker`
    out_dir : `Path`
    prefix : `str`
        What the names of the output files begin with.
    write_chunks : `bool`
        Whether chunk files are written, and not the object index alone.
    append : `bool`
        Whether rows are added to files of earlier runs.
    """

    in_fields: Sequence[str]
    out_fields: Sequence[str]
    in_dialect: Dialect
    out_dialect: Dialect
    position_fields: tuple[str, str] | None
    id_field: str | None
    chunk_field: str | None
    sub_chunk_field: str
    index_path: Path | None
    chunker: Chunker
    out_dir: Path
    prefix: str = "chunk"
    write_chunks: bool = True
    append: bool = False


@dataclass
class Summary:
    """What was written: rows read, and rows of each chunk and of its overlap."""

    rows: int = 0
    chunk_rows: Counter[int] = field(default_factory=Counter)
    overlap_rows: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Piece:
    """A part of an output row: the input fields ``first`` to ``last``, or, if these are negative, a text.

    A text is a sequence of `bytes` and of the names of the attributes of `Placements` whose values stand between them.
    """

    first: int = -1
    last: int = -1
    text: tuple[bytes | str, ...] = ()


def compile_pieces(options: Options) -> list[Piece]:
    """The parts an output row is joined of: as few as possible, for fields that are neighbours move together."""
    columns = {name: index for index, name in enumerate(options.in_fields)}
    variables = {options.chunk_field: "chunk", options.sub_chunk_field: "sub_chunk"}
    delimiter = bytes([options.out_dialect.delimiter])
    pieces: list[Piece] = []
    for position, name in enumerate(options.out_fields):
        before = (delimiter,) if position else ()
        if name in columns and name not in variables:
            index = columns[name]
            if pieces and pieces[-1].last == index - 1 >= 0:
                pieces[-1] = Piece(pieces[-1].first, index)
            else:
                _add_text(pieces, before)
                pieces.append(Piece(index, index))
        else:
            _add_text(pieces, (*before, variables.get(name, options.out_dialect.null)))
    _add_text(pieces, (b"\n",))
    return pieces


def _add_text(pieces: list[Piece], text: tuple[bytes | str, ...]) -> None:
    """Add a text to the pieces, as a part of the last one if that is a text."""
    if pieces and pieces[-1].first < 0:
        pieces[-1] = Piece(text=pieces[-1].text + text)
    elif text:
        pieces.append(Piece(text=text))


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, ascending, and which of them each value is: like `numpy.unique`, mostly without a sort."""
    runs = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    if len(runs) < len(values) // 2:
        distinct, codes = _distinct(values[runs])
        return distinct, np.repeat(codes, np.diff(runs, append=len(values)))
    low, high = int(values.min()), int(values.max())
    if high - low > 1 << 22:
        return np.unique(values, return_inverse=True)
    offsets = values - low
    present = np.zeros(high - low + 1, dtype=bool)
    present[offsets] = True
    ranks = np.cumsum(present, dtype=np.int32) - 1
    return np.flatnonzero(present) + low, ranks[offsets]


def _stable_order(codes: np.ndarray) -> np.ndarray:
    """Stable ascending order; small codes are sorted by radix."""
    return np.argsort(codes.astype(np.uint16) if codes.max() < 1 << 16 else codes, kind="stable")


class Batch:
    """Rows that wait to be written: their text, the spans of it that are kept, and their places."""

    def __init__(self) -> None:
        # Memory that is not used is not taken from the machine.
        self.data = np.empty(MAX_BATCH_BYTES + MAX_READ_BYTES, dtype=np.uint8)
        self.clear()

    def clear(self) -> None:
        self.size = self.num_rows = 0
        self._next_size = MIN_BATCH_BYTES
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._places: list[Placements] = []
        self._overlap: list[Placements] = []

    def is_full(self) -> bool:
        """Whether it is time to write the rows."""
        if self.size >= MAX_BATCH_BYTES or self.num_rows >= MAX_BATCH_ROWS:
            return True
        if self.size < self._next_size:
            return False
        self._next_size += MIN_BATCH_BYTES
        chunks = _distinct(np.concatenate([places.chunk for places in self._places]))[0]
        return self.size >= MIN_APPEND_BYTES * len(chunks)

    def add(
        self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, places: Placements, overlap: Placements
    ) -> None:
        """Add the rows of a block; ``starts`` and ``ends`` (int, (spans, rows)) say which of their bytes are kept."""
        if self.size + len(data) > len(self.data):
            self.data = np.concatenate([self.data[: self.size], np.empty(len(data), dtype=np.uint8)])
        self.data[self.size : self.size + len(data)] = data
        self._starts.append((starts + self.size).astype(np.int32))
        self._ends.append((ends + self.size).astype(np.int32))
        for kept, new in ((self._places, places), (self._overlap, overlap)):
            kept.append(Placements((new.row + self.num_rows).astype(np.int32), new.chunk, new.sub_chunk))
        self.size += len(data)
        self.num_rows += starts.shape[1]

    def rows(self, overlap: bool) -> tuple[list[Spans], Placements]:
        """The spans, and where their rows go: by chunk; in the overlap by chunk and sub-chunk; then in the order added."""
        starts, ends = np.concatenate(self._starts, axis=1), np.concatenate(self._ends, axis=1)
        placed = Placements(
            *(np.concatenate(column) for column in zip(*(self._overlap if overlap else self._places), strict=True))
        )
        if len(placed.row):
            codes = _distinct(placed.chunk)[1]
            if overlap:
                sub_chunks, sub_codes = _distinct(placed.sub_chunk)
                codes = codes.astype(np.int64) * len(sub_chunks) + sub_codes
            if (codes[1:] < codes[:-1]).any():
                order = _stable_order(codes)
                placed = Placements(*(column[order] for column in placed))
        return [Spans(*pair) for pair in zip(starts, ends, strict=True)], placed


class Partitioner:
    """Partitions CSV files.

    Parameters
    ----------
    options : `Options`

    Raises
    ------
    InputError
        If the object index cannot be read.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._pieces = compile_pieces(options)
        self._spans = [piece for piece in self._pieces if piece.first >= 0]
        self._columns = {name: index for index, name in enumerate(options.in_fields)}
        self._used = np.zeros(len(self._columns), dtype=bool)
        for piece in self._spans:
            self._used[piece.first : piece.last + 1] = True
        self._index = None
        if options.position_fields is None:
            self._index = read_index(options.index_path, options.out_dialect)

    def run(self, paths: Sequence[Path]) -> Summary:
        """Partition files, one after the other.

        Raises
        ------
        InputError
            If a row cannot be read or placed; no file is left then.
        SkymillError
            If the output directory has files of an earlier run, or of one that is still running.
        """
        options = self.options
        self._summary = Summary()
        self._appends: Counter[int] = Counter()
        self._files = StagedDirectory(options.out_dir, options.prefix, options.append)
        try:
            batch = Batch()
            with contextlib.ExitStack() as stack:
                index = None
                if options.position_fields and options.id_field:
                    index = stack.enter_context(self._files.open(f"{options.prefix}_object_index.txt"))
                for path in paths:
                    logger.info("reading %s", path)
                    for block in read_blocks(path, options.in_dialect):
                        try:
                            self._add(block, batch, index)
                        except RowError as error:
                            raise block.error(error.row, str(error)) from None
                        if batch.is_full():
                            self._write(batch)
                self._write(batch)
            self._sort_overlaps()
            self._files.commit()
        except BaseException:
            self._files.discard()
            raise
        return self._summary

    def _add(self, block: Block, batch: Batch, index: BinaryIO | None) -> None:
        """Place the rows of a block and add them to the batch and to the object index."""
        options, data = self.options, block.data
        ends = block.dialect.field_ends(data, len(options.in_fields))
        starts = field_starts(ends)
        ids = None if options.id_field is None else self._values(block, starts, ends, options.id_field)
        overlap = Placements(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))
        if options.position_fields:
            chunk, sub_chunk, overlap = self._locate(block, starts, ends)
        else:
            found = self._index.find(ids)
            missing = np.flatnonzero(found < 0)
            if len(missing):
                raise RowError(
                    int(missing[0]),
                    f"{options.id_field} = {ids.value(missing[0])!r} is not in the object index {options.index_path}",
                )
            chunk, sub_chunk = self._index.chunk[found], self._index.sub_chunk[found]
        self._summary.rows += len(ends)
        places = Placements(np.arange(len(ends)), chunk, sub_chunk)
        if index is not None:
            self._write_index(index, ids, places)
        if not options.write_chunks:
            return
        if options.in_dialect != options.out_dialect:
            data, ends = recode(data, ends, self._used, block.dialect, options.out_dialect)
            starts = field_starts(ends)
        first, last = [piece.first for piece in self._spans], [piece.last for piece in self._spans]
        batch.add(data, starts[:, first].T, ends[:, last].T, places, overlap)

    def _values(self, block: Block, starts: np.ndarray, ends: np.ndarray, name: str) -> Fields:
        """The values of a field that must be neither NULL nor empty."""
        dialect = block.dialect
        column = self._columns[name]
        fields = Fields(block.data, starts[:, column], ends[:, column])
        if len(block.data) > 8 * int((fields.ends - fields.starts).sum()):
            # A small part of wide rows: what follows need not go through all of the text.
            fields = fields.packed()
        values = dialect.decode(fields)
        for wrong, what in ((dialect.is_null(fields), "NULL"), (values.starts == values.ends, "empty")):
            if wrong.any():
                raise RowError(int(np.argmax(wrong)), f"{name} is {what}: the row cannot be placed")
        return values

    def _locate(self, block: Block, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, Placements]:
        """Where rows go by their RA and Dec."""
        coordinates = []
        for name, low, high in zip(self.options.position_fields, (0, -90), (360, 90), strict=True):
            fields = self._values(block, starts, ends, name)
            allowed = f"it must be a number from {low} to {high} [deg]"
            try:
                values = parse_coordinates(fields)
            except RowError as error:
                raise RowError(error.row, f"{name} = {fields.value(error.row)!r}: {allowed}") from None
            wrong = ~((values >= low) & (values <= high))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise RowError(row, f"{name} = {fields.value(row)}: {allowed}")
            coordinates.append(values)
        return self.options.chunker.locate_overlap(*coordinates)

    def _write_index(self, index: BinaryIO, ids: Fields, places: Placements) -> None:
        """Add objects to the object index."""
        dialect = self.options.out_dialect
        delimiter = bytes([dialect.delimiter])
        ids = dialect.encode(ids.packed())
        piece = Piece(text=(delimiter, "chunk", delimiter, "sub_chunk", b"\n"))
        parts = [Spans(ids.starts, ids.ends), *_texts(piece, places)]
        for text, _ in join_parts(ids.data, parts, places.row):
            index.write(text)

    def _write(self, batch: Batch) -> None:
        """Write the rows of a batch."""
        if batch.num_rows:
            for overlap in (False, True):
                spans, placed = batch.rows(overlap)
                if len(placed.row):
                    self._write_rows(batch.data[: batch.size], spans, placed, overlap)
        batch.clear()

    def _write_rows(self, data: np.ndarray, spans: list[Spans], placed: Placements, overlap: bool) -> None:
        """Add rows, in the order of their chunks, to the files of the chunks."""
        sources = iter(spans)
        parts = [
            part for piece in self._pieces for part in ([next(sources)] if piece.first >= 0 else _texts(piece, placed))
        ]
        begins = np.flatnonzero(np.diff(placed.chunk, prepend=-1))
        sizes = np.diff(begins, append=len(placed.chunk))
        counts = self._summary.overlap_rows if overlap else self._summary.chunk_rows
        for chunk, size in zip(placed.chunk[begins].tolist(), sizes.tolist(), strict=True):
            counts[chunk] += size
            self._appends[chunk] += overlap
        name = self._overlap_name if overlap else self._chunk_name
        row, file = 0, None
        try:
            for text, ends in join_parts(data, parts, placed.row):
                first, last = np.searchsorted(begins, [row, row + len(ends)])
                cuts = begins[first:last]
                offsets = [*np.concatenate([[0], ends])[cuts - row].tolist(), len(text)]
                if file is not None:
                    file.write(text[: offsets[0]])
                for chunk, (start, end) in zip(placed.chunk[cuts].tolist(), itertools.pairwise(offsets), strict=True):
                    if file is not None:
                        file.close()
                    file = self._files.open(name(chunk))
                    file.write(text[start:end])
                row += len(ends)
        finally:
            if file is not None:
                file.close()

    def _chunk_name(self, chunk: int) -> str:
        return f"{self.options.prefix}_{chunk}.txt"

    def _overlap_name(self, chunk: int) -> str:
        return f"{self.options.prefix}_{chunk}_overlap.txt"

    def _sort_overlaps(self) -> None:
        """Order the rows of overlap files by sub-chunk that were written in more than one piece."""
        dialect, fields = self.options.out_dialect, list(self.options.out_fields)
        column = fields.index(self.options.sub_chunk_field)
        for chunk, appends in self._appends.items():
            if not appends or (appends == 1 and not self.options.append):
                continue
            path = self._files.path(self._overlap_name(chunk))
            data = np.fromfile(path, dtype=np.uint8)
            if column == len(fields) - 1:
                ends = row_ends(data, dialect.escape)
                starts = np.concatenate([[0], ends[:-1]])
                sub_chunk = parse_last_ids(data, ends - 1)
            else:
                stops = dialect.field_ends(data, len(fields))
                firsts = field_starts(stops)
                sub_chunk = parse_ids(data, firsts[:, column], stops[:, column])
                starts, ends = firsts[:, 0], stops[:, -1] + 1
            order = _stable_order(sub_chunk)
            with path.open("wb") as file:
                for text, _ in join_parts(data, [Spans(starts, ends)], order):
                    file.write(text)


def _texts(piece: Piece, placed: Placements) -> list[Texts]:
    """The text of a piece in each row."""
    names = {item for item in piece.text if isinstance(item, str)}
    if not names:
        return [Texts.make([b"".join(piece.text)], np.zeros(len(placed.row), dtype=np.int8))]
    if len(names) == 1:
        (name,) = names
        values, codes = _distinct(getattr(placed, name))
        return [Texts.make(_fill(piece, {name: values}), codes)]
    chunks, codes = _distinct(placed.chunk)
    sub_chunks, sub_codes = _distinct(placed.sub_chunk)
    if len(chunks) * len(sub_chunks) <= 1 << 22:
        pairs, codes = _distinct(codes * len(sub_chunks) + sub_codes)
        if len(pairs) <= len(placed.row) // 8:
            values = {"chunk": chunks[pairs // len(sub_chunks)], "sub_chunk": sub_chunks[pairs % len(sub_chunks)]}
            return [Texts.make(_fill(piece, values), codes)]
    # Too many different texts to make them all: put them together of two.
    cut = next(index for index in range(len(piece.text)) if {*piece.text[:index]} & names)
    return [text for part in (piece.text[:cut], piece.text[cut:]) for text in _texts(Piece(text=part), placed)]


def _fill(piece: Piece, values: dict[str, np.ndarray]) -> np.ndarray:
    """The texts of a piece with the given values."""
    items = [values[item].astype(np.bytes_) if isinstance(item, str) else np.bytes_(item) for item in piece.text]
    return functools.reduce(np.strings.add, items)
