"""The questions of verification in SQL, for DuckDB and for MySQL (MariaDB, too): what `skymill.facts` knows, asked of a store.

Each function gives a query and the names of the facts that its columns answer. With ``group`` the first column is the
chunk id and there is a row for each chunk; without it there is one row, of a table that belongs to one chunk.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from . import facts
from .chunker import Chunker, max_alpha_deg
from .columns import Column
from .config import Dataset, Table
from .facts import Fact, TableFacts, table_facts
from .pairs import chord_squared
from .rowhash import hash_query

#: Columns that one query asks about: databases limit how many expressions there may be.
COLUMNS_AT_ONCE = 64
#: Rows of other chunks, in a table that belongs to one chunk.
STRAYS = "rows of other chunks"


@dataclass(frozen=True)
class Question:
    """A query and what its columns say.

    Attributes
    ----------
    query : `str`
    names : `list` [`str`]
        The fact of each column, the chunk id left out.
    """

    query: str
    names: list[str]


@dataclass(frozen=True)
class Dialect:
    """How a database writes things.

    Attributes
    ----------
    name : `str`
        ``duckdb`` or ``mysql``.
    """

    name: str

    def quote(self, name: str) -> str:
        """A name of a column or table."""
        return f'"{name}"' if self.name == "duckdb" else f"`{name}`"

    def number(self, value: float) -> str:
        """A double."""
        return (
            f"{value!r}::DOUBLE" if self.name == "duckdb" else f"{value!r}e0" if "e" not in repr(value) else repr(value)
        )

    def equals(self, column: Column, text: str) -> str:
        """Whether a column of strings has a value, byte by byte."""
        name = self.quote(column.name)
        if self.name == "duckdb":
            name = f"rtrim({name}, ' ')" if column.type.text.startswith("CHAR") else name
            return "{} = '{}'".format(name, text.replace("'", "''"))
        return f"BINARY {name} = X'{text.encode().hex()}'"

    def whole(self, expression: str) -> str:
        """The whole number below."""
        return f"floor({expression})::BIGINT" if self.name == "duckdb" else f"CAST(FLOOR({expression}) AS SIGNED)"

    def modulo(self, one: str, other: str) -> str:
        """What is left of a division of doubles."""
        return f"{'fmod' if self.name == 'duckdb' else 'MOD'}({one}, {other})"


DUCKDB, MYSQL = Dialect("duckdb"), Dialect("mysql")


def _grouped(expressions: Sequence[str], relation: str, group: str | None) -> str:
    first = [f"{group} AS g"] if group else []
    return f"SELECT {', '.join([*first, *expressions])} FROM {relation}{' GROUP BY 1' if group else ''}"


def ask_columns(
    kind: TableFacts, relation: str, dialect: Dialect, strings: Mapping[str, Sequence[str]], chunk: int | None = None
) -> Iterator[Question]:
    """Rows, and the facts of each column.

    Parameters
    ----------
    kind : `TableFacts`
    relation : `str`
        What stands behind FROM.
    dialect : `Dialect`
    strings : `Mapping` [`str`, sequence of `str`]
        For columns of strings the values that are to be counted.
    chunk : `int`, optional
        The chunk that the relation belongs to; without it the answer is grouped by chunks. A regular table has no
        chunks (-1).
    """
    group = dialect.quote("chunkId") if chunk is None else None
    asked = [(facts.ROWS, "count(*)")]
    if chunk is not None and chunk >= 0:
        asked.append((STRAYS, f"count(CASE WHEN {dialect.quote('chunkId')} <> {chunk} THEN 1 END)"))
    asked += [(facts.distinct(name), f"count(DISTINCT {dialect.quote(name)})") for name in kind.keys]
    for first in range(0, max(1, len(kind.columns)), COLUMNS_AT_ONCE):
        columns = kind.columns[first : first + COLUMNS_AT_ONCE]
        for column in columns:
            asked += _ask_column(kind, column, dialect, strings.get(column.name, ()))
        query = _grouped([expression for _, expression in asked], f"{relation} AS t", group)
        yield Question(query, [name for name, _ in asked])
        asked = []


def _ask_column(
    kind: TableFacts, column: Column, dialect: Dialect, strings: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The facts of a column, and the expressions that say them."""
    name, quoted = column.name, dialect.quote(column.name)
    yield facts.nulls(name), f"count(*) - count({quoted})"
    if column.type.kind == "string":
        for text in strings:
            yield facts.equal(name, text), f"count(CASE WHEN {dialect.equals(column, text)} THEN 1 END)"
        return
    if column.type.kind == "boolean" and dialect is DUCKDB:
        quoted = f"{quoted}::INT"
    if column.type.kind == "datetime":
        quoted = f"epoch_us({quoted})" if dialect is DUCKDB else f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {quoted})"
    # MySQL prints a float with six digits, a double with all of them.
    exact = "0e0 + " if dialect is MYSQL and column.type.kind == "float" else ""
    yield facts.least(name), f"{exact}min({quoted})"
    yield facts.greatest(name), f"{exact}max({quoted})"
    if name not in kind.edges:
        yield facts.total(name), f"sum({quoted})"
        return
    edges = [dialect.number(edge) for edge in kind.edges[name]]
    if dialect is DUCKDB and column.type.duckdb == "FLOAT":
        edges = [edge.replace("::DOUBLE", "::FLOAT") for edge in edges]  # they are exact in both
    conditions = [f"{quoted} < {edges[0]}"]
    conditions += [f"{quoted} >= {low} AND {quoted} < {high}" for low, high in itertools.pairwise(edges)]
    conditions.append(f"{quoted} >= {edges[-1]}")
    for fact, condition in zip(facts.bins(name, kind.edges[name]), conditions, strict=True):
        yield fact, f"count(CASE WHEN {condition} THEN 1 END)"


def ask_orphans(
    kind: TableFacts,
    relation: str,
    others: Mapping[str, str],
    partitioned: Sequence[str],
    dialect: Dialect,
    group: bool,
) -> Iterator[Question]:
    """Rows whose key is in no row of another table; if that is partitioned, in none of the same chunk and sub-chunk.

    Parameters
    ----------
    kind : `TableFacts`
    relation : `str`
        The table.
    others : `Mapping` [`str`, `str`]
        The tables that it refers to: name -> what stands behind FROM.
    partitioned : sequence of `str`
        Names of those that are partitioned.
    dialect : `Dialect`
    group : `bool`
        Whether the answer is grouped by chunks.
    """
    for name, table, key in kind.references:
        places = [*(["chunkId"] if group else []), "subChunkId"] if table in partitioned else []
        wanted = ", ".join(dialect.quote(column) for column in [key, *places])
        pairs = [(name, key), *zip(places, places, strict=True)]
        join = " AND ".join(f"a.{dialect.quote(ours)} = b.{dialect.quote(theirs)}" for ours, theirs in pairs)
        # The other table as a list of different keys: MySQL makes an index of it.
        source = f"{relation} AS a LEFT JOIN (SELECT DISTINCT {wanted} FROM {others[table]} AS t) AS b ON {join}"
        missing = f"a.{dialect.quote(name)} IS NOT NULL AND b.{dialect.quote(key)} IS NULL"
        chunk = f"a.{dialect.quote('chunkId')}" if group else None
        query = _grouped([f"count(CASE WHEN {missing} THEN 1 END)"], source, chunk)
        yield Question(query, [facts.orphans(name, table)])


def ask_filters(
    kind: TableFacts,
    relation: str,
    visits: Table,
    visits_relation: str,
    filters: Sequence[str],
    dialect: Dialect,
    group: bool,
) -> Iterator[Question]:
    """Rows of a child by the filter of their visits."""
    reference = next((name for name, table, _ in kind.references if table == visits.name), None)
    if reference is None or not kind.by_filter or not filters:
        return
    column = next(c for c in visits.columns if c.name == visits.visit["filter"])
    visit_id, shown = dialect.quote(visits.visit["id"]), dialect.quote(column.name)
    # Under another name: the child may have a column of this name, too.
    column = replace(column, name="filter_of_visit")
    alias = dialect.quote(column.name)
    source = (
        f"{relation} AS a JOIN (SELECT DISTINCT {visit_id} AS v, {shown} AS {alias} FROM {visits_relation} AS t) AS b "
        f"ON a.{dialect.quote(reference)} = b.v"
    )
    counts = [f"count(CASE WHEN {dialect.equals(column, text)} THEN 1 END)" for text in filters]
    query = _grouped(counts, source, f"a.{dialect.quote('chunkId')}" if group else None)
    yield Question(query, [facts.seen(text) for text in filters])


def ask_pairs(
    kind: TableFacts, relation: str, overlap: str, chunker: Chunker, chunk: int, dialect: Dialect, group: bool
) -> Iterator[Question]:
    """Ordered pairs of a director's rows that are closer than each of some radii, by way of the overlap table.

    A row is paired with those of its own sub-chunk and with those in the overlap of that sub-chunk, so that a row
    missing there shows as a deficit, and one that is there twice as a surplus. Pairs are sought in cells a little
    larger than the largest radius.

    Parameters
    ----------
    kind : `TableFacts`
    relation, overlap : `str`
        The director, and its overlap table.
    chunker : `Chunker`
    chunk : `int`
        A chunk; all others, if the answer is grouped, are of the same stripe.
    dialect : `Dialect`
    group : `bool`
        Whether the answer is grouped by chunks.
    """
    if not kind.radii_deg:
        return
    table = kind.table
    key, ra, dec, chunk_id, sub_chunk = map(dialect.quote, (table.key, *table.position, "chunkId", "subChunkId"))
    reach = max(kind.radii_deg) * (1 + 1e-6)
    stripe = chunker.stripe_of(chunk)
    count = int(chunker.chunks_in_stripe[stripe])
    box = chunker.chunk_box(chunk)
    far = max(abs(box.dec_min_deg), abs(box.dec_max_deg)) + chunker.overlap_deg
    width = max_alpha_deg(reach, min(far, 90.0)) * (1 + 1e-6)
    if width > 60.0 or count < 4:
        width = 720.0  # all in one cell, or in two neighbouring ones: there is no border at which RA starts anew
    # RA is counted from the middle of the chunk.
    centre = f"({chunk_id} % {2 * chunker.num_stripes} + 0.5) * {dialect.number(360.0 / count)}"
    along = f"({dialect.modulo(f'{ra} - {centre} + 540', '360')} - 180)"
    radians = f"cos(radians({dec}))"
    columns = (
        f"{chunk_id} AS c, {sub_chunk} AS s, {key} AS id, {dialect.whole(f'{dec} / {dialect.number(reach)}')} AS band, "
        f"{dialect.whole(f'{along} / {dialect.number(width)}')} AS cell, "
        f"{radians} * cos(radians({ra})) AS x, {radians} * sin(radians({ra})) AS y, sin(radians({dec})) AS z"
    )
    home = f"SELECT {columns} FROM {relation} AS t"
    near = f"{home} UNION ALL SELECT {columns} FROM {overlap} AS t"
    steps = "SELECT -1 AS d UNION ALL SELECT 0 UNION ALL SELECT 1"
    around = (
        f"SELECT n.c, n.s, n.id, n.x, n.y, n.z, n.band + p.d AS band, n.cell + q.d AS cell FROM ({near}) AS n "
        f"CROSS JOIN ({steps}) AS p CROSS JOIN ({steps}) AS q"
    )
    square = "(a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y) + (a.z - b.z) * (a.z - b.z)"
    limits = [chord_squared(radius) for radius in kind.radii_deg]
    # What is not within the largest radius is out before it is counted.
    counts = [
        "count(*)" if limit == max(limits) else f"count(CASE WHEN {square} < {dialect.number(limit)} THEN 1 END)"
        for limit in limits
    ]
    source = (
        f"({home}) AS a JOIN ({around}) AS b ON a.c = b.c AND a.s = b.s AND a.band = b.band AND a.cell = b.cell "
        f"AND a.id <> b.id AND {square} < {dialect.number(max(limits))}"
    )
    query = _grouped(counts, source, "a.c" if group else None)
    yield Question(query, [facts.pairs(radius) for radius in kind.radii_deg])


def ask_all(
    dataset: Dataset,
    relations: Mapping[str, str],
    known: Mapping[str, Iterable[str]],
    chunk: int,
    dialect: Dialect,
    group: bool,
) -> Iterator[tuple[str, Question]]:
    """All questions about the director and child tables of some chunks of a stripe, or of one.

    Parameters
    ----------
    dataset : `Dataset`
    relations : `Mapping` [`str`, `str`]
        What stands behind FROM, for each table and overlap table that is loaded; regular tables, too.
    known : `Mapping` [`str`, iterable of `str`]
        The names of the facts of each table: they tell which strings and filters there are.
    chunk : `int`
        The chunk, or one of them.
    dialect : `Dialect`
    group : `bool`
        Whether there are several chunks.

    Yields
    ------
    table : `str`
    question : `Question`
    """
    by = dialect.quote("chunkId") if group else None
    one = None if group else chunk
    partitioned = [table.name for table in dataset.tables_of("director", "child")]
    for table in dataset.tables_of("director", "child"):
        if table.name not in relations:
            continue
        kind, relation = table_facts(dataset, table), relations[table.name]
        names = list(known.get(table.name, ()))
        for question in ask_columns(kind, relation, dialect, _strings(kind, names), one):
            yield table.name, question
        yield table.name, Question(hash_query(kind.stored, relation, dialect.name, by), list(facts.HASH))
        loaded = replace(kind, references=[part for part in kind.references if part[1] in relations])
        for question in ask_orphans(loaded, relation, relations, partitioned, dialect, group):
            yield table.name, question
        if table.visits in relations:
            filters = [name.removeprefix(facts.seen("")) for name in names if name.startswith(facts.seen(""))]
            visits = dataset.tables[table.visits]
            for question in ask_filters(kind, relation, visits, relations[visits.name], filters, dialect, group):
                yield table.name, question
        if table.kind == "director":
            overlap = relations[table.overlap_name]
            bare = replace(kind, columns=[], keys=[])
            for question in ask_columns(bare, overlap, dialect, {}, one):
                yield table.overlap_name, question
            query = hash_query(kind.stored, overlap, dialect.name, by)
            yield table.overlap_name, Question(query, list(facts.HASH))
            radii = [radius for radius in kind.radii_deg if facts.pairs(radius) in names]
            counted = replace(kind, radii_deg=radii)
            for question in ask_pairs(counted, relation, overlap, dataset.chunker, chunk, dialect, group):
                yield table.name, question


def ask_regular(
    dataset: Dataset, table: Table, relation: str, known: Iterable[str], dialect: Dialect
) -> Iterator[Question]:
    """All questions about a regular table."""
    kind = table_facts(dataset, table)
    yield from ask_columns(kind, relation, dialect, _strings(kind, list(known)), -1)
    yield Question(hash_query(kind.stored, relation, dialect.name), list(facts.HASH))


def _strings(kind: TableFacts, names: Sequence[str]) -> dict[str, list[str]]:
    """The values of columns of strings that facts tell of."""
    found: dict[str, list[str]] = {}
    for column in kind.columns:
        if column.type.kind == "string":
            start = facts.equal(column.name, "")[:-2]
            found[column.name] = [ast.literal_eval(n.removeprefix(start)) for n in names if n.startswith(start)]
    return found


def read_answer(value: object) -> Fact:
    """A value that a database has answered, as the facts have it."""
    if isinstance(value, (bool, Decimal)):
        return int(value)
    return value
