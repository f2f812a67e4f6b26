"""Questions about databases and tables that several services ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import DUMMY_CHUNK, chunk_table
from .state import Record

if TYPE_CHECKING:
    from .cluster import Cluster


def is_director(table: Record) -> bool:
    """Whether a table is partitioned and depends on no other."""
    return bool(table["is_partitioned"]) and not table["director_table"]


def find_table(database: Record, name: str) -> Record:
    """A table of a database.

    Raises
    ------
    RuntimeError
        If there is no such table.
    """
    for table in database["tables"]:
        if table["name"] == name:
            return table
    home = database["database"]
    raise RuntimeError(f"DatabaseInfo::findTable no such table '{name}' found in the database '{home}'.")


def database_json(database: Record) -> Record:
    """A database as the services show it."""
    return {key: value for key, value in database.items() if key != "auto_build"}


def chunk_numbers(cluster: Cluster, database: str) -> list[int]:
    """The chunks allocated in a database."""
    return sorted({chunk for chunk, _ in cluster.state.replicas(database)})


def worker_tables(
    cluster: Cluster, worker: str, table: Record, overlaps: tuple[bool, ...], template: bool
) -> list[str]:
    """Names of a table's tables on a worker: those of the dummy chunk and of the allocated chunks."""
    if not table["is_partitioned"]:
        return [table["name"]]
    chunks = [DUMMY_CHUNK, *(c for c, w in cluster.state.replicas(table["database"]) if w == worker)]
    names = [chunk_table(table["name"], chunk, overlap) for chunk in chunks for overlap in overlaps]
    return [table["name"], *names] if template else names
