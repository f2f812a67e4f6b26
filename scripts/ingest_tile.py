"""Load a tile: send the files of each chunk to the store, and write its sentinel.

Reads the manifest of partitioning and the started transaction. For each chunk without a sentinel that counts (one that holds the
id of the present transaction) it loads the chunk and overlap files that have rows, compares the rows that the store has with
those expected, and writes ``chunk_<id>.json``. Last comes the tile's manifest.

Fails if the store has other rows than were sent. Sentinels stay: the next run goes on from there. If the store cannot be trusted to hold
what was sent, once each, the transaction is marked as poisoned: other jobs stop early, and the next run aborts it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from skymill.config import Dataset
from skymill.errors import PoisonedError, SkymillError
from skymill.files import lock, read_json, write_json
from skymill.plan import poison_path
from skymill.step import Stopwatch, log, start_step
from skymill.stores import Contribution, Store, open_store


def chunk_contributions(dataset: Dataset, chunk: int, entry: dict, folder: Path) -> list[Contribution]:
    """The files of a chunk that have rows.

    Parameters
    ----------
    dataset : `Dataset`
    chunk : `int`
    entry : `dict`
        The chunk's entry in the manifest of partitioning.
    folder : `pathlib.Path`
        The folder of partitioned files.
    """
    files = []
    for table in dataset.tables_of("director", "child"):
        if not table.ingest:
            continue
        for overlap in (False, True) if table.kind == "director" else (False,):
            made = entry[table.overlap_name if overlap else table.name]
            path = folder / table.name / f"chunk_{chunk}{'_overlap' if overlap else ''}.txt"
            if made["rows"]:
                files.append(Contribution(table, chunk, overlap, path, made["rows"], made["bytes"]))
    return files


def refuse_poisoned(root: Path, started: dict) -> None:
    """Stop early if another job has found that the transaction cannot be trusted.

    Raises
    ------
    SkymillError
        With that job's reason.
    """
    mark = poison_path(root, started["transaction"], started["attempt"])
    if mark.exists():
        raise SkymillError(
            f"transaction {started['transaction']} cannot be trusted any more ({read_json(mark)['reason']}); "
            "run the workflow again: it aborts the transaction and loads its chunks in a new one"
        )


@contextlib.contextmanager
def poisoning(root: Path, started: dict) -> Iterator[None]:
    """Mark the transaction as poisoned if the block finds that it cannot be trusted; the error goes on."""
    try:
        yield
    except PoisonedError as error:
        mark = poison_path(root, started["transaction"], started["attempt"])
        if not mark.exists():
            write_json(mark, {**started, "reason": str(error)})
        raise SkymillError(
            f"{error}; run the workflow again: it aborts the transaction and loads its chunks in a new one"
        ) from error


def add_rows(total: dict[str, int], rows: dict[str, int]) -> None:
    """Add rows of tables to a total, in place."""
    for name, count in rows.items():
        total[name] = total.get(name, 0) + count


def load(store: Store, transaction_id: str, tile: str, files: list[Contribution]) -> Iterator[tuple[int | None, dict]]:
    """Load the files of a tile; yields each chunk, and the rows of its tables, as soon as the store has it.

    Raises
    ------
    SkymillError
        If a file is missing or cut, or the store has other rows than were sent.
    """
    for file in files:
        found = file.path.stat().st_size if file.path.exists() else 0
        if found != file.bytes:
            raise SkymillError(
                f"{file.path}: it has {found} bytes, its manifest says {file.bytes}; partition the tile again"
            )
    sent: dict[int | None, dict[str, int]] = {}
    for file in files:
        sent.setdefault(file.chunk, {})[file.table_name] = file.rows
    for chunk, rows in store.contribute(transaction_id, tile, files):
        expected = sum(sent[chunk].values())
        if rows != expected:
            raise SkymillError(f"chunk {chunk}: the store has {rows} rows of it, sent were {expected}")
        yield chunk, sent.pop(chunk)
    if sent:
        raise SkymillError(f"the store did not load the chunks {', '.join(map(str, sent))}")


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``ingest_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    tile, target = snakemake.wildcards.tile, Path(snakemake.output.manifest)
    sentinels = target.with_suffix("")
    with lock(Path(snakemake.params.lock)):
        started = read_json(snakemake.input.started)
        transaction_id = started["id"]
        refuse_poisoned(dataset.results, started)
        partitioned = read_json(snakemake.input.manifest)
        store = open_store(dataset, dataset.results)
        files = {
            int(chunk): chunk_contributions(dataset, int(chunk), entry, Path(snakemake.input.bulk))
            for chunk, entry in partitioned["chunks"].items()
        }
        rows: dict[str, int] = {}
        missing = []
        for chunk, sent in files.items():
            sentinel = sentinels / f"chunk_{chunk}.json"
            done = read_json(sentinel) if sentinel.exists() else {}
            if done.get("transaction_id") == transaction_id:
                add_rows(rows, done["rows"])
            elif sent:
                missing += sent
            else:
                write_json(sentinel, {"chunk": chunk, "transaction_id": transaction_id, "rows": {}})
        with poisoning(dataset.results, started):
            for chunk, loaded in load(store, transaction_id, tile, missing):
                sentinel = {"chunk": chunk, "transaction_id": transaction_id, "rows": loaded}
                write_json(sentinels / f"chunk_{chunk}.json", sentinel)
                add_rows(rows, loaded)
                refuse_poisoned(dataset.results, started)
        manifest = {
            "stage": "loaded",
            "transaction": snakemake.wildcards.txn,
            "transaction_id": transaction_id,
            "tile": tile,
            "chunks": len(files),
            "rows": rows,
            **watch.read(),
        }
        write_json(target, manifest)
    log.info("loaded %d chunks in %.1f s", len(files), manifest["seconds"])


if "snakemake" in globals():
    main(globals()["snakemake"])
