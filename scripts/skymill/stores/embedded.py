"""The embedded store: Parquet files, and one DuckDB database that shows them. Nothing to install or start.

``store/staging/<id>/<Table>/`` takes what a transaction loads: a Parquet file for each chunk, or for neighbouring small
chunks of a tile together; the file's own metadata say how many rows of which chunks it holds. A commit renames the
transaction's folder to ``store/committed/<id>``, at once and for good. Publishing writes the DuckDB database, with the
rows in it up to a limit, and with views of the Parquet files above.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..columns import Column
from ..config import Dataset, Table
from ..errors import PoisonedError, SkymillError, show
from ..files import written_aside
from . import Contribution

#: Small chunks of a tile go into one file together, up to about so much text [bytes].
BATCH_BYTES = 1 << 26
#: Text that is parsed at a time [bytes]; Arrow reads some blocks ahead, and parsed text takes several times its size.
BLOCK_BYTES = 1 << 22
#: Rows of a row group of the Parquet files, and bytes in memory: fewer rows if they are wide.
GROUP_ROWS = 1 << 17
GROUP_BYTES = 1 << 26
_HELD_KEY = b"skymill.rows_of_chunks"
_ESCAPES = (("\\t", "\t"), ("\\n", "\n"), ("\\r", "\r"), ("\\0", "\0"))


class EmbeddedStore:
    """The store in a folder; see `skymill.stores.Store` for what its methods do.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.
    """

    def __init__(self, dataset: Dataset, root: Path):
        self.dataset = dataset
        self.root = Path(root)
        self.staging = self.root / "store" / "staging"
        self.committed = self.root / "store" / "committed"
        self.database = self.root / f"{dataset.database}.duckdb"

    def register(self, dataset: Dataset, fingerprint: str) -> dict:
        self.staging.mkdir(parents=True, exist_ok=True)
        self.committed.mkdir(parents=True, exist_ok=True)
        return {"database": self.database.name}

    def start_transaction(self, name: str, attempt: int, context: dict) -> str:
        transaction_id = f"{name}.{attempt}"
        if not (self.committed / transaction_id).exists():
            (self.staging / transaction_id).mkdir(parents=True, exist_ok=True)
        return transaction_id

    def contribute(
        self, transaction_id: str, tile: str, contributions: Sequence[Contribution]
    ) -> Iterator[tuple[int | None, int]]:
        folder = self._staged(transaction_id)
        for batch in _batches(contributions):
            held: dict[int | None, int] = {}
            for name in dict.fromkeys(contribution.table_name for contribution in batch):
                sent = [contribution for contribution in batch if contribution.table_name == name]
                rows = _rows_held(folder / name, tile)
                missing = [contribution for contribution in sent if str(contribution.chunk) not in rows]
                if missing:
                    rows |= _load(folder / name, tile, missing)
                for contribution in sent:
                    held[contribution.chunk] = held.get(contribution.chunk, 0) + rows[str(contribution.chunk)]
            yield from held.items()

    def commit(self, transaction_id: str, rows: Mapping[str, int]) -> dict:
        target = self.committed / transaction_id
        if target.exists():
            return {}
        folder = self._staged(transaction_id)
        held = {
            name: sum(_read_metadata(path, PoisonedError).num_rows for path in (folder / name).glob("*.parquet"))
            for name, _ in self.loaded_tables()
        }
        if {name: count for name, count in held.items() if count} != {name: c for name, c in rows.items() if c}:
            raise PoisonedError(
                f"transaction {transaction_id}: it holds the rows {show(held)}, loaded were {show(dict(rows))}"
            )
        for path in folder.glob("*/.*"):
            path.unlink()  # what a job that was killed had not finished
        os.rename(folder, target)
        return {}

    def abort(self, transaction_id: str) -> None:
        if (self.committed / transaction_id).exists():
            raise SkymillError(f"transaction {transaction_id} is committed; it cannot be aborted")
        shutil.rmtree(self.staging / transaction_id, ignore_errors=True)

    def publish(self, committed: Sequence[Mapping]) -> dict:
        import duckdb

        folders = [self.committed / entry["id"] for entry in committed]
        missing = [folder.name for folder in folders if not folder.is_dir()]
        if missing:
            raise SkymillError(
                f"the transaction {missing[0]} was committed, but {self.committed} does not hold it; it was moved or removed: put it back"
            )
        files = {
            name: sorted(p for f in folders for p in (f / name).glob("*.parquet")) for name, _ in self.loaded_tables()
        }
        rows = {
            name: sum(_read_metadata(path, SkymillError).num_rows for path in paths) for name, paths in files.items()
        }
        for name, count in rows.items():
            committed_rows = sum(entry["rows"].get(name, 0) for entry in committed)
            if count != committed_rows:
                raise SkymillError(
                    f"{name}: the files below {self.committed} hold {count} rows, committed were {committed_rows}; run `snakemake repair`, which "
                    "makes again what is missing"
                )
        copied = sum(rows.values()) <= self.dataset.config["ingest"]["materialise_rows"]
        with written_aside(self.database) as aside:
            aside.unlink(missing_ok=True)
            try:
                with duckdb.connect(str(aside)) as connection:
                    for name, columns in self.loaded_tables():
                        _show_table(connection, name, columns, files[name], copied)
                        found = connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                        if found != rows[name]:
                            raise SkymillError(
                                f"{name}: the database shows {found} rows, its files hold {rows[name]}; run again"
                            )
            finally:
                aside.with_name(f"{aside.name}.wal").unlink(missing_ok=True)
        absolute = None if copied else str(self.root.resolve())
        return {"database": self.database.name, "file": self.database.name, "absolute": absolute, "rows": rows}

    def check(self) -> list[tuple[str, bool, str]]:
        parent = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        free = shutil.disk_usage(parent).free
        state = "published" if self.database.exists() else "not there yet"
        return [
            ("can the folder be written", os.access(parent, os.W_OK), str(self.root)),
            ("is there room on the disk", free > 0, f"{free / 1e9:.1f} GB free"),
            ("the database", True, f"{self.database.name} is {state}"),
        ]

    def count_rows(self) -> dict[str, int]:
        with open_database(self.database) as connection:
            return {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for name, _ in self.loaded_tables()
            }

    def _staged(self, transaction_id: str) -> Path:
        """The folder of an open transaction.

        Raises
        ------
        SkymillError
            If it is not there.
        """
        folder = self.staging / transaction_id
        if not folder.is_dir():
            state = "committed" if (self.committed / transaction_id).exists() else "not started, or aborted"
            raise SkymillError(
                f"transaction {transaction_id} is {state}; run the workflow again to see what is left to do"
            )
        return folder

    def loaded_tables(self) -> list[tuple[str, list[Column]]]:
        """Names and columns of the tables that are loaded, overlap tables included."""
        tables = []
        for table in self.dataset.tables_of("regular", "director", "child"):
            if table.ingest:
                tables.append((table.name, table.stored_columns))
                if table.kind == "director":
                    tables.append((table.overlap_name, table.stored_columns))
        return tables


def open_database(path: Path, **config: int):  # noqa: ANN201 - DuckDB is imported only when needed
    """A connection to a published database, to read it.

    Raises
    ------
    SkymillError
        If another program is writing to it, or it is damaged.
    """
    import duckdb

    try:
        return duckdb.connect(str(path), read_only=True, config=config)
    except duckdb.Error as error:
        is_locked = "lock" in str(error)
        remedy = "close it there" if is_locked else "remove it, and the next run of `snakemake` publishes it again"
        raise SkymillError(f"cannot open {path}: {str(error).splitlines()[0].rstrip('!.')}; {remedy}") from None


def _read_metadata(path: Path, kind: type[SkymillError]) -> pyarrow.parquet.FileMetaData:
    """The metadata of a Parquet file; an error of a kind if it is damaged."""
    try:
        return pyarrow.parquet.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        remedy = "" if kind is PoisonedError else "; run `snakemake repair`, which makes again what it held"
        raise kind(f"cannot read {path}: {error}{remedy}") from None


def read_text(path: Path, table: Table) -> Iterator[pa.Table]:
    """Read a file in the ingest dialect, block by block.

    Raises
    ------
    SkymillError
        If a value does not fit its column, or a row has too few or too many.
    """
    columns = table.stored_columns
    types = {column.name: _arrow_type(column) for column in columns}
    strings = [i for i, column in enumerate(columns) if column.type.kind == "string"]
    required = [i for i, column in enumerate(columns) if not column.type.nullable]
    try:
        reader = pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(use_threads=False, column_names=[c.name for c in columns], block_size=BLOCK_BYTES),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False, newlines_in_values=False),
            pyarrow.csv.ConvertOptions(
                column_types=types, null_values=["\\N"], strings_can_be_null=True, true_values=["1"], false_values=["0"]
            ),
        )
        for batch in reader:
            block = pa.Table.from_batches([batch])
            for i in required:
                if block.column(i).null_count:
                    raise SkymillError(
                        f"{path}: {columns[i].name} is NOT NULL, but {block.column(i).null_count} rows have NULL"
                    )
            for i in strings:
                block = block.set_column(i, columns[i].name, _unescape(block.column(i)))
            yield block
    except pa.ArrowInvalid as error:
        raise SkymillError(f"{path}: {error}") from None


def _unescape(strings: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings without the backslash escapes of the ingest dialect."""
    import pyarrow.compute as pc

    if not pc.any(pc.match_substring(strings, "\\")).as_py():
        return strings
    # What stands behind two backslashes is no escape: they are put out of the way first.
    strings = pc.replace_substring(strings, "\\\\", "\x01")
    for escape, character in _ESCAPES:
        strings = pc.replace_substring(strings, escape, character)
    return pc.replace_substring(strings, "\x01", "\\")


def _arrow_type(column: Column) -> pa.DataType:
    return pa.type_for_alias(column.type.arrow)


def _batches(contributions: Sequence[Contribution]) -> Iterator[list[Contribution]]:
    """Contributions of whole chunks, in order, up to `BATCH_BYTES` together."""
    batch: list[Contribution] = []
    size = 0
    for _, group in itertools.groupby(contributions, key=lambda contribution: contribution.chunk):
        chunk = list(group)
        chunk_size = sum(contribution.bytes for contribution in chunk)
        if batch and size + chunk_size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch += chunk
        size += chunk_size
    if batch:
        yield batch


def _rows_held(folder: Path, tile: str) -> dict[str, int]:
    """Rows of each chunk that the files of a tile in a table's folder hold."""
    held: dict[str, int] = {}
    for path in folder.glob(f"{tile}.*.parquet"):
        held |= json.loads(_read_metadata(path, PoisonedError).metadata[_HELD_KEY])
    return held


def _load(folder: Path, tile: str, contributions: list[Contribution]) -> dict[str, int]:
    """Write files of one table as one Parquet file; returns the rows of each chunk."""
    folder.mkdir(exist_ok=True)
    first = contributions[0].chunk
    blocks = (block for contribution in contributions for block in read_contribution(contribution))
    path = folder / f"{tile}.{'all' if first is None else first}.parquet"
    return write_parquet(path, contributions[0].table.stored_columns, blocks)


def read_contribution(contribution: Contribution) -> Iterator[tuple[str, pa.Table]]:
    """The rows of a file, block by block, each with the chunk.

    Raises
    ------
    SkymillError
        If it has other rows than it should.
    """
    found = 0
    for block in read_text(contribution.path, contribution.table):
        found += len(block)
        yield str(contribution.chunk), block
    if found != contribution.rows:
        raise SkymillError(f"{contribution.path}: it has {found} rows, its manifest says {contribution.rows}")


def rows_of_chunks(path: Path) -> dict[str, int]:
    """The rows of each chunk that a Parquet file of ours holds, as its own metadata say."""
    return json.loads(pyarrow.parquet.read_metadata(path).metadata[_HELD_KEY])


def write_parquet(path: Path, columns: Sequence[Column], blocks: Iterator[tuple[str, pa.Table]]) -> dict[str, int]:
    """Write a Parquet file, aside first; returns the rows of each chunk.

    Parameters
    ----------
    path : `pathlib.Path`
    columns : sequence of `Column`
    blocks : iterator of `tuple` [`str`, `pyarrow.Table`]
        Rows and the chunk that they belong to, chunk by chunk.
    """
    # Random numbers do not repeat: a dictionary would only cost time, but for places, filters and the like.
    repeated = [c.name for c in columns if c.name in ("chunkId", "subChunkId") or c.type.kind == "string"]
    schema = pa.schema([pa.field(c.name, _arrow_type(c), c.type.nullable) for c in columns])
    rows: dict[str, int] = {}
    waiting: list[pa.Table] = []
    held = held_bytes = 0
    with (
        written_aside(path) as aside,
        pyarrow.parquet.ParquetWriter(
            aside, schema, compression="snappy", use_dictionary=repeated, write_statistics=repeated
        ) as writer,
    ):
        for chunk, block in blocks:
            rows[chunk] = rows.get(chunk, 0) + len(block)
            waiting.append(block.cast(schema))
            held += len(block)
            held_bytes += block.nbytes
            if held >= GROUP_ROWS or held_bytes >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting, held, held_bytes = [], 0, 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.add_key_value_metadata({_HELD_KEY.decode(): json.dumps(rows)})
    return rows


def _show_table(connection, name: str, columns: list[Column], files: list[Path], copied: bool) -> None:  # noqa: ANN001
    """Make a table of the database: with the rows of Parquet files in it, or as a view of them."""
    declared = ", ".join(f'"{c.name}" {c.type.duckdb}{"" if c.type.nullable else " NOT NULL"}' for c in columns)
    if copied or not files:
        connection.execute(f'CREATE TABLE "{name}" ({declared})')
        if files:
            connection.execute(
                f'INSERT INTO "{name}" BY NAME SELECT * FROM read_parquet(?)', [[str(path) for path in files]]
            )
        return
    # One pattern for each folder: a view's text must not grow with the number of files.
    patterns = sorted({str(path.parent.resolve() / "*.parquet") for path in files})
    listed = ", ".join("'" + pattern.replace("'", "''") + "'" for pattern in patterns)
    connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{listed}])')
