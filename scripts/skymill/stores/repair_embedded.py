"""Replaces chunks of the embedded store by new files: Parquet files are written anew, each at once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ..columns import Column
from . import Contribution
from .embedded import EmbeddedStore, read_contribution, rows_of_chunks, write_parquet


def replace_chunks(
    store: EmbeddedStore, transaction_id: str, tile: str, chunks: set[int], files: Sequence[Contribution]
) -> list[Path]:
    """Replace all rows of some chunks of a tile by those of new files.

    A Parquet file may hold other chunks, too; their rows are taken over. Rows of chunks that the file should not have
    are left out. A file that is damaged is removed: its chunks must be among those that are replaced.

    Parameters
    ----------
    store : `EmbeddedStore`
    transaction_id : `str`
        The store's id of the committed transaction.
    tile : `str`
    chunks : `set` [`int`]
        The chunks.
    files : sequence of `Contribution`
        All files of these chunks that have rows.

    Returns
    -------
    written : `list` [`pathlib.Path`]
        The Parquet files that were written.
    """
    written = []
    for name, columns in store.loaded_tables():
        if not any(column.name == "chunkId" for column in columns):
            continue
        folder = store.committed / transaction_id / name
        fresh = {str(file.chunk): file for file in files if file.table_name == name}
        for path in sorted(folder.glob(f"{tile}.*.parquet")):
            held = _held(path)
            if held is None:
                path.unlink()
                written.append(path)
            elif any(str(chunk) in held for chunk in chunks):
                here = {chunk: fresh.pop(chunk) for chunk in held if chunk in fresh}
                gone = {str(chunk) for chunk in chunks}
                _rewrite(path, columns, [chunk for chunk in held if chunk in here or chunk not in gone], here)
                written.append(path)
        if fresh:  # no file holds them
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{tile}.{min(map(int, fresh))}.parquet"
            blocks = (block for file in fresh.values() for block in read_contribution(file))
            write_parquet(path, columns, blocks)
            written.append(path)
    return written


def replace_regular(store: EmbeddedStore, transaction_id: str, file: Contribution) -> Path:
    """Replace a regular table by a new file."""
    path = store.committed / transaction_id / file.table_name / "regular.all.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(path, file.table.stored_columns, read_contribution(file))
    return path


def remove_strays(store: EmbeddedStore, tables: Mapping[str, Mapping[int, tuple[str, str] | None]]) -> list[Path]:
    """Remove rows of some chunks from files that should not have them; a file that has no chunk of its own is removed.

    Parameters
    ----------
    store : `EmbeddedStore`
    tables : `Mapping` [`str`, `Mapping` [`int`, `tuple` [`str`, `str`] or `None`]]
        For each table the chunks of which there may be rows in wrong files, with the store's id of the transaction and
        the tile that they belong to; None for a chunk that nobody has made.

    Returns
    -------
    written : `list` [`pathlib.Path`]
        The files that were written anew or removed.
    """
    written = []
    columns_of = dict(store.loaded_tables())
    for name, chunks in tables.items():
        for path in sorted(store.committed.glob(f"*/{name}/*.parquet")):
            place = (path.parent.parent.name, path.name.split(".")[0])
            own = [chunk for chunk in _held(path) or () if chunks.get(int(chunk), place) == place]
            found = pc.unique(pyarrow.parquet.read_table(path, columns=["chunkId"])["chunkId"]).to_pylist()
            if any(chunk in chunks and str(chunk) not in own for chunk in found):
                _rewrite(path, columns_of[name], own, {})
                written.append(path)
    return written


def damaged_chunks(
    store: EmbeddedStore, transaction_id: str, tile: str, rows: Mapping[int, Mapping[str, int]]
) -> dict[str, list[int]]:
    """The chunks of a tile of which the store's files do not have the rows that were loaded, as far as the files themselves say, by table.

    Parameters
    ----------
    store : `EmbeddedStore`
    transaction_id, tile : `str`
        As in `replace_chunks`.
    rows : `Mapping` [`int`, `Mapping` [`str`, `int`]]
        For each chunk the rows of each table that were loaded.
    """
    damaged = {}
    for name, columns in store.loaded_tables():
        if any(column.name == "chunkId" for column in columns):
            held: Counter[int] = Counter()
            for path in (store.committed / transaction_id / name).glob(f"{tile}.*.parquet"):
                held.update({int(chunk): count for chunk, count in (_held(path) or {}).items()})
            damaged[name] = [chunk for chunk, loaded in sorted(rows.items()) if held[chunk] != loaded.get(name, 0)]
    return {name: chunks for name, chunks in damaged.items() if chunks}


def is_damaged(store: EmbeddedStore, transaction_id: str, table: str, rows: int) -> bool:
    """Whether the files of a regular table do not have the rows that were loaded."""
    paths = (store.committed / transaction_id / table).glob("*.parquet")
    return sum(sum((_held(path) or {}).values()) for path in paths) != rows


def _held(path: Path) -> dict[str, int] | None:
    """The rows of each chunk that a file holds, as it says itself, or if it does not hold so many, as they are; None if it cannot be read."""
    try:
        with contextlib.suppress(KeyError, TypeError):  # somebody else has written it
            held = rows_of_chunks(path)
            if sum(held.values()) == pyarrow.parquet.read_metadata(path).num_rows:
                return held
        counts = pyarrow.parquet.read_table(path, columns=["chunkId"])["chunkId"].value_counts().to_pylist()
        return {str(count["values"]): count["counts"] for count in counts}
    except (pa.ArrowException, OSError, KeyError):
        return None


def _rewrite(path: Path, columns: Sequence[Column], chunks: Sequence[str], fresh: Mapping[str, Contribution]) -> None:
    """Write a Parquet file anew, with these chunks in this order, some of them from new files; without any it is removed."""
    if not chunks:
        path.unlink()
        return

    def blocks() -> Iterator[tuple[str, pa.Table]]:
        old = pyarrow.parquet.read_table(path) if len(fresh) < len(chunks) else None
        for chunk in chunks:
            if chunk in fresh:
                yield from read_contribution(fresh[chunk])
            else:
                yield chunk, old.filter(pc.equal(old["chunkId"], int(chunk)))

    write_parquet(path, columns, blocks())
