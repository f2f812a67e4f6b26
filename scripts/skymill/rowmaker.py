"""Makes rows: positions of a director in its boxes, the columns of a block of rows, and the children of a director's rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .blocks import some_rows
from .boxes import INNER, chunk_boxes, halo_boxes
from .columns import Column, Rows, Strings, Values
from .config import Dataset, Table
from .density import HealpixDensity, UniformDensity, read_density_map
from .errors import ConfigError, SkymillError
from .streams import stream

if TYPE_CHECKING:
    from .tables import RowSelection
    from .visits import Visits

#: Rows that are made at a time. A constant of the format: positions that are drawn again come after those of their
#: block.
BLOCK_ROWS = 8192
#: Values of edge boxes that are kept: a box is at home in one chunk and in the halo of several.
EDGE_VALUES = 1 << 24


class BoxStreams:
    """The random streams of a table's columns in a box; they go on from block to block.

    Attributes
    ----------
    rows_made : `int`
        Rows that the box has had so far.
    """

    def __init__(self, seed: int, table: Table, chunk: int, box: int):
        self._key = (seed, table.name)
        self._place = (chunk, box)
        self._streams: dict[str, np.random.Generator] = {}
        self.rows_made = 0

    def __getitem__(self, column: str) -> np.random.Generator:
        found = self._streams.get(column)
        if found is None:
            found = self._streams[column] = stream(*self._key, column, *self._place)
        return found


def fill_columns(table: Table, rows: Rows, streams: BoxStreams) -> None:
    """Make every column of a block of rows, in place.

    Parameters
    ----------
    table : `Table`
    rows : `Rows`
        The block; ``rows.columns`` is filled.
    streams : `BoxStreams`
        The streams of the block's box.

    Raises
    ------
    SkymillError
        If a generator of the user made something else than it should.
    """
    for entry in table.entries_in_order:
        try:
            made = entry.generator.draw(streams[entry.stream_name], rows)
        except Exception as error:
            error.add_note(f"in the generator of {table.name}.{entry.stream_name}")
            raise
        parts = made if isinstance(made, (tuple, list)) else (made,)
        if len(parts) != len(entry.columns):
            raise SkymillError(
                f"{table.name}: the generator of {entry.stream_name} made {len(parts)} columns, not {len(entry.columns)}"
            )
        for column, values in zip(entry.columns, parts, strict=True):
            values = _checked(table, column, values, rows.count)
            if entry.null_fraction > 0.0:
                values = _with_nulls(values, streams[f"#null {column.name}"].random(rows.count) < entry.null_fraction)
            rows.columns[column.name] = values
    streams.rows_made += rows.count


def _checked(table: Table, column: Column, values: Values, count: int) -> Values:
    """Values in the type of their column; strings of a user's generator as codes."""
    if isinstance(values, Strings) and column.type.kind != "string":
        raise SkymillError(f"{table.name}.{column.name}: strings do not fit {column.type.text}")
    if not isinstance(values, Strings):
        values = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if column.type.kind == "string":
            if values.dtype.kind in "iufbM":
                raise SkymillError(f"{table.name}.{column.name}: numbers do not fit {column.type.text}")
            null = np.ma.getmaskarray(values)
            unique, codes = np.unique(np.ma.filled(values, "").astype(str), return_inverse=True)
            values = Strings(np.where(null, -1, codes).astype(np.int32), tuple(unique.tolist()))
        elif (values.dtype.kind == "M") != (column.type.kind == "datetime"):
            raise SkymillError(f"{table.name}.{column.name}: its generator made {values.dtype}, not {column.type.text}")
        elif values.dtype != column.type.dtype:
            typed = values.astype(column.type.dtype)
            if column.type.kind != "float" and not np.array_equal(np.ma.compressed(typed), np.ma.compressed(values)):
                raise SkymillError(
                    f"{table.name}.{column.name}: its generator made values that do not fit {column.type.text}"
                )
            values = typed
    if isinstance(values, Strings):
        null_found = count > 0 and int(values.codes.min()) < 0
        too_long = [i for i, text in enumerate(values.values) if len(text) > column.type.length]
        if too_long and np.isin(too_long, values.codes).any():
            raise SkymillError(f"{table.name}.{column.name}: a string is longer than {column.type.text}")
    else:
        # Not np.ma.compressed() for all: it costs more than the check.
        is_masked = isinstance(values, np.ma.MaskedArray)
        null_found = is_masked and np.ma.is_masked(values)
        if column.type.kind == "float" and not np.isfinite(values.compressed() if is_masked else values).all():
            raise SkymillError(
                f"{table.name}.{column.name}: its generator made inf or nan, which {column.type.text} does not hold"
            )
        if column.type.kind == "datetime":
            values = _whole_moments(values, column)
    if null_found and not column.type.nullable:
        raise SkymillError(f"{table.name}.{column.name}: a value is NULL, but the column is {column.type.text}")
    if len(values) != count:
        raise SkymillError(f"{table.name}.{column.name}: its generator made {len(values)} values for {count} rows")
    return values


def _whole_moments(values: np.ndarray, column: Column) -> np.ndarray:
    """Times without the decimals of a second that their column does not hold."""
    if np.isnat(np.ma.compressed(values)).any():
        raise SkymillError(f"{column.name}: its generator made NaT, which {column.type.text} does not hold")
    step = 10 ** (6 - column.type.length)
    if step == 1:
        return values
    moments = np.ma.getdata(values).astype(np.int64)
    moments -= moments % step
    whole = moments.astype(column.type.dtype)
    return np.ma.masked_array(whole, np.ma.getmaskarray(values)) if np.ma.isMaskedArray(values) else whole


def _with_nulls(values: Values, null: np.ndarray) -> Values:
    if isinstance(values, Strings):
        return Strings(np.where(null, np.int32(-1), values.codes), values.values)
    return np.ma.masked_array(np.ma.getdata(values), null | np.ma.getmaskarray(values))


def choose_rows(selection: RowSelection, rows: Rows, random: np.random.Generator) -> np.ndarray:
    """The rows of a director that have rows in a child: indices (int64), ascending.

    Parameters
    ----------
    selection : `RowSelection`
    rows : `Rows`
        Complete rows of the director. A row whose value is NULL is not chosen.
    random : `numpy.random.Generator`
        The stream of this choice in the rows' box; it gives one number for each row.
    """
    values = rows.columns[selection.column]
    passed = np.ma.getdata(values).astype(np.float64)
    passed -= selection.limit
    if not selection.upwards:
        np.negative(passed, out=passed)
    drawn = random.random(rows.count)
    # The share grows linearly with the distance from the limit, from 0 to 1 over the width of the edge.
    chosen = passed > (drawn - 0.5) * selection.edge
    if np.ma.isMaskedArray(values):
        chosen &= ~np.ma.getmaskarray(values)
    return np.flatnonzero(chosen)


def load_density(table: Table, folder: Path) -> UniformDensity | HealpixDensity:
    """The density of a director: uniform, or a map that is read from the folder of the configuration."""
    spec = table.density
    if "per_sq_deg" in spec:
        return UniformDensity(float(spec["per_sq_deg"]))
    try:
        return HealpixDensity(read_density_map(folder / spec["map"], spec["ordering"], spec["scale"]))
    except ValueError as error:
        raise ConfigError(f"tables.{table.name}.density.map: {error}") from None


class RowMaker:
    """Makes the rows of a dataset's chunks.

    Parameters
    ----------
    dataset : `Dataset`
    densities : `dict` [`str`, `UniformDensity` or `HealpixDensity`]
        The density of each director.
    visits : `dict` [`str`, `Visits`]
        The tables of visits.
    """

    def __init__(
        self, dataset: Dataset, densities: dict[str, UniformDensity | HealpixDensity], visits: dict[str, Visits]
    ):
        self.dataset = dataset
        self.chunker = dataset.chunker
        self.densities = densities
        self.visits = visits
        self._edges: OrderedDict[tuple[str, int, int], list[Rows]] = OrderedDict()
        self._edge_values = 0

    def count_rows(self, table: Table, chunk: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a director in a box: the cells of its density that have any, and the count of each (int64)."""
        cells, expected = self.densities[table.name].expected_counts(chunk_boxes(self.chunker, chunk)[number])
        random = stream(self.dataset.seed, table.name, "#rows", chunk, number)
        counts = random.poisson(expected)
        return cells[counts > 0], counts[counts > 0]

    def positions(self, table: Table, chunk: int, number: int) -> Iterator[Rows]:
        """The rows of a director in a box, with their places only, in blocks of at most `BLOCK_ROWS`."""
        box = chunk_boxes(self.chunker, chunk)[number]
        cells, counts = self.count_rows(table, chunk, number)
        waiting: list[tuple[np.ndarray, ...]] = []
        first = held = 0
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            random = stream(self.dataset.seed, table.name, "#position", chunk, number, cell)
            for start in range(0, count, BLOCK_ROWS):
                part = self._draw_positions(table, chunk, box, cell, random, min(BLOCK_ROWS, count - start))
                if held + len(part[0]) > BLOCK_ROWS:
                    yield self._block(chunk, number, first, waiting)
                    first, held, waiting = first + held, 0, []
                waiting.append(part)
                held += len(part[0])
        if waiting:
            yield self._block(chunk, number, first, waiting)

    def _block(self, chunk: int, number: int, first: int, parts: list[tuple[np.ndarray, ...]]) -> Rows:
        ra, dec, sub_chunk = (
            np.concatenate(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)
        )
        return Rows(len(ra), first, chunk, number, {}, ra, dec, sub_chunk)

    def _draw_positions(self, table, chunk, box, cell, random, count) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: ANN001
        """Points of a cell in a box that the locator places in the chunk; others (by rounding) are drawn again."""
        density = self.densities[table.name]
        ra, dec = density.sample(random, box, cell, count)
        home, sub_chunk = self.chunker.locate(ra, dec)
        wrong = np.flatnonzero((home != chunk) | (ra >= 360.0))
        while len(wrong):
            ra[wrong], dec[wrong] = density.sample(random, box, cell, len(wrong))
            home, sub_chunk = self.chunker.locate(ra, dec)
            wrong = np.flatnonzero((home != chunk) | (ra >= 360.0))
        return ra, dec, sub_chunk

    def director_blocks(self, table: Table, chunk: int, boxes: list[int] | None = None) -> Iterator[Rows]:
        """Complete rows of a director in a chunk, block by block, in the order of its boxes.

        Parameters
        ----------
        table : `Table`
            A director.
        chunk : `int`
        boxes : `list` [`int`], optional
            Numbers of the boxes to make; all by default.
        """
        for number in sorted(chunk_boxes(self.chunker, chunk)) if boxes is None else boxes:
            yield from self._box_blocks(table, chunk, number) if number == INNER else self._edge(table, chunk, number)

    def halo_blocks(self, table: Table, chunk: int) -> Iterator[Rows]:
        """Complete rows of neighbours that are in a chunk's overlap."""
        for neighbour, number in halo_boxes(self.chunker, chunk):
            for rows in self._edge(table, neighbour, number):
                if rows.overlap is None:
                    rows.overlap = self.chunker.locate_overlap(rows.ra_deg, rows.dec_deg)[2]
                reaching = np.unique(rows.overlap.row[rows.overlap.chunk == chunk])
                if len(reaching):
                    yield some_rows(rows, reaching)

    def _box_blocks(self, table: Table, chunk: int, number: int) -> Iterator[Rows]:
        """Complete rows of a director in a box."""
        streams = BoxStreams(self.dataset.seed, table, chunk, number)
        for rows in self.positions(table, chunk, number):
            fill_columns(table, rows, streams)
            yield rows

    def _edge(self, table: Table, chunk: int, number: int) -> Iterator[Rows]:
        """Complete rows of a director in an edge box, kept for the neighbours that will ask for them next."""
        key = (table.name, chunk, number)
        if key in self._edges:
            self._edges.move_to_end(key)
            yield from self._edges[key]
            return
        kept: list[Rows] | None = []
        for rows in self._box_blocks(table, chunk, number):
            if kept is not None:
                kept.append(rows)
                if sum(part.count for part in kept) * len(table.columns) > EDGE_VALUES // 16:
                    kept = None
            yield rows
        if kept is not None:
            self._edges[key] = kept
            self._edge_values += sum(rows.count for rows in kept) * len(table.columns)
            while self._edge_values > EDGE_VALUES:
                (name, *_), dropped = self._edges.popitem(last=False)
                self._edge_values -= sum(rows.count for rows in dropped) * len(self.dataset.tables[name].columns)

    def child_blocks(self, table: Table, director: Rows, streams: BoxStreams) -> Iterator[Rows]:
        """The rows of a child that belong to a block of its director.

        Parameters
        ----------
        table : `Table`
            A child.
        director : `Rows`
            A block of complete rows of its director.
        streams : `BoxStreams`
            The streams of this child in the director's box.
        """
        visits = self.visits[table.visits]
        names = {n for e in table.entries for n in e.generator.director_columns(visits.filters)}
        unknown = sorted(names - director.columns.keys())
        if unknown:
            raise ConfigError(
                f"tables.{table.name}: {table.visits} has the filters {', '.join(visits.filters)}, but {table.director} has no column {unknown[0]}; "
                "add it, or leave out what needs it"
            )
        visit_names = {n for e in table.entries for n in e.generator.visit_columns()} | {"#filter"}
        ra_deg, dec_deg, chosen = director.ra_deg, director.dec_deg, None
        if table.select is not None:
            chosen = choose_rows(table.select, director, streams["#select"])
            ra_deg, dec_deg = ra_deg[chosen], dec_deg[chosen]
        for parent, visit in visits.match(ra_deg, dec_deg, table.radius_deg):
            if not len(parent):
                continue
            if chosen is not None:
                parent = chosen[parent]
            rows = Rows(
                count=len(parent),
                first=streams.rows_made,
                chunk=director.chunk,
                box=director.box,
                columns={},
                sub_chunk=director.sub_chunk[parent],
                director={name: director.columns[name][parent] for name in names},
                visits={name: visits.columns[name][visit] for name in visit_names},
                filters=visits.filters,
            )
            fill_columns(table, rows, streams)
            yield rows
