"""What an administrator of Qserv must do to replace chunks that are committed: statements for the workers' MySQL databases.

Nothing here talks to a server. A committed chunk of Qserv is frozen for the ingest system, which has no way to take its
rows back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..derived import QSERV_COLUMN
from ..questions import MYSQL
from . import Contribution


def chunk_statements(
    tables: Sequence[str], chunk: int, transaction_id: str, files: Iterable[Contribution]
) -> list[str]:
    """The statements that replace a chunk on a worker, in the dataset's database there.

    Parameters
    ----------
    tables : sequence of `str`
        Tables whose rows are to be replaced, overlap tables included.
    chunk : `int`
    transaction_id : `str`
        Qserv's id of the transaction in which the chunk was committed.
    files : iterable of `Contribution`
        The files of the chunk that have rows, where MySQL's client finds them.
    """
    by_table = {file.table_name: file for file in files}
    statements = []
    for name in tables:
        target = MYSQL.quote(f"{name}_{chunk}")
        statements.append(f"DELETE FROM {target};")
        if name in by_table:
            statements.append(_load(by_table[name], target, transaction_id))
    return statements


def regular_statements(file: Contribution, transaction_id: str) -> list[str]:
    """The statements that replace a regular table on a worker."""
    target = MYSQL.quote(file.table_name)
    return [f"DELETE FROM {target};", _load(file, target, transaction_id)]


def stranger_statements(tables: Mapping[str, Iterable[int]]) -> list[str]:
    """The statements that remove chunks which nobody has made."""
    return [f"DELETE FROM {MYSQL.quote(f'{name}_{chunk}')};" for name, chunks in tables.items() for chunk in chunks]


def _load(file: Contribution, target: str, transaction_id: str) -> str:
    columns = ", ".join(MYSQL.quote(column.name) for column in file.table.stored_columns)
    path = str(Path(file.path).resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return (
        f"LOAD DATA LOCAL INFILE '{path}' INTO TABLE {target} CHARACTER SET latin1 FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' "
        f"LINES TERMINATED BY '\\n' ({columns}) SET {MYSQL.quote(QSERV_COLUMN)} = {int(transaction_id)};"
    )
