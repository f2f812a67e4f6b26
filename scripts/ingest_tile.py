"""Load a tile: send the files of each chunk to the store, and write its sentinel.

Reads the manifest of partitioning and the started transaction. For each chunk without a sentinel that counts (one that
holds the id of the present transaction) it loads the chunk and overlap files that have rows, compares the rows that the
store has with those expected, and writes ``chunk_<id>.json``. Last comes the tile's manifest.

A chunk whose files were damaged is left to a retry, see `skymill.failures`. Fails if the store refuses a chunk, or has
other rows than were sent, but not before the other chunks are loaded. Sentinels stay: the next run goes on from there.
If the store cannot be trusted to hold what was sent, once each, the transaction is marked as poisoned: other jobs stop
early, and the next run aborts it.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from skymill.config import Dataset
from skymill.errors import PoisonedError, SkymillError
from skymill.failures import TileFailures, say
from skymill.files import lock, read_json, write_json
from skymill.plan import loaded_chunks, poison_path
from skymill.retries import home_tile, own_chunks, plan_retry
from skymill.selection import format_ranges
from skymill.step import Stopwatch, log, start_step
from skymill.stores import Contribution, Store, open_store

#: After so many chunks that failed one after the other, the fault is taken to be the store's.
GIVE_UP = 3


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


def check_sizes(files: list[Contribution]) -> None:
    """Look whether files are whole.

    Raises
    ------
    SkymillError
        If one is missing or cut.
    """
    for file in files:
        found = file.path.stat().st_size if file.path.exists() else 0
        if found != file.bytes:
            raise SkymillError(
                f"{file.path}: it has {found} bytes, its manifest says {file.bytes}; run again, which makes it anew"
            )


def load(store: Store, transaction_id: str, tile: str, files: list[Contribution]) -> Iterator[tuple[int | None, dict]]:
    """Load the files of a tile; yields each chunk, and the rows of its tables, as soon as the store has it.

    Raises
    ------
    SkymillError
        If a file is missing or cut, or the store has other rows than were sent.
    """
    check_sizes(files)
    sent: dict[int | None, dict[str, int]] = {}
    for file in files:
        sent.setdefault(file.chunk, {})[file.table_name] = file.rows
    for chunk, rows in store.contribute(transaction_id, tile, files):
        expected = sum(sent[chunk].values())
        if rows != expected:
            raise SkymillError(f"chunk {chunk}: the store has {rows} rows of it, sent were {expected}; run again")
        yield chunk, sent.pop(chunk)
    if sent:
        raise SkymillError(f"the store did not load the chunks {', '.join(map(str, sent))}; run again")


def load_each(
    store: Store, transaction_id: str, tile: str, files: dict[int, list[Contribution]], failures: TileFailures
) -> Iterator[tuple[int, dict]]:
    """Load the files of a tile like `load`. If that fails, load what is left chunk by chunk, so that only those fail that must.

    Raises
    ------
    PoisonedError
        If the store cannot be trusted any more.
    """
    left = dict(files)
    try:
        for chunk, rows in load(store, transaction_id, tile, list(itertools.chain.from_iterable(files.values()))):
            del left[chunk]
            failures.forget(chunk)
            yield chunk, rows
    except PoisonedError:
        raise
    except SkymillError as error:
        if len(left) > 1:
            log.warning("%s; loading the %d chunks that are left one by one", error, len(left))
    in_a_row = 0
    for number, (chunk, chunk_files) in enumerate(left.items()):
        if in_a_row == GIVE_UP:
            raise SkymillError(
                f"{failures.failed[next(reversed(failures.failed))]}; {GIVE_UP} chunks have failed one after the other, the other "
                f"{len(left) - number} were not tried; run again to load what is missing"
            )
        in_a_row += 1
        with failures.catch(chunk):
            ((_, rows),) = load(store, transaction_id, tile, chunk_files)
            yield chunk, rows
            in_a_row = 0


def damaged_chunks(files: dict[int, list[Contribution]], failures: TileFailures) -> set[int]:
    """The chunks of which a file is missing or cut."""
    for chunk, chunk_files in files.items():
        with failures.catch(chunk):
            check_sizes(chunk_files)
    return set(failures.failed)


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``ingest_tile``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    root, name, tile = dataset.results, snakemake.wildcards.txn, snakemake.wildcards.tile
    target = Path(snakemake.output.manifest)
    sentinels = target.parent / home_tile(tile)
    with lock(Path(snakemake.params.lock)):
        started = read_json(snakemake.input.started)
        transaction_id = started["id"]
        refuse_poisoned(root, started)
        partitioned = read_json(snakemake.input.manifest)["chunks"]
        own = own_chunks(root, name, tile).tolist()
        done = loaded_chunks(root, name, tile, transaction_id)
        files = {
            chunk: chunk_contributions(dataset, chunk, partitioned[str(chunk)], Path(snakemake.input.bulk))
            for chunk in own
            if str(chunk) in partitioned and chunk not in done
        }
        lost = damaged_chunks(files, TileFailures(root, name, tile, "partition"))
        lost |= {chunk for chunk in own if str(chunk) not in partitioned and chunk not in done}
        rows: dict[str, int] = {}
        chunks = []

        def record(chunk: int, loaded: dict[str, int]) -> None:
            if chunk not in done:
                sentinel = {"chunk": chunk, "transaction_id": transaction_id, "rows": loaded}
                write_json(sentinels / f"chunk_{chunk}.json", sentinel)
            add_rows(rows, loaded)
            chunks.append(chunk)

        failures = TileFailures(root, name, tile, "load")
        for chunk in own:
            if chunk in done or files.get(chunk) == []:
                record(chunk, done.get(chunk, {}))
                failures.forget(chunk)
        missing = {chunk: sent for chunk, sent in files.items() if sent and chunk not in lost}
        with poisoning(root, started):
            for chunk, loaded in load_each(
                open_store(dataset, root), transaction_id, home_tile(tile), missing, failures
            ):
                record(chunk, loaded)
                refuse_poisoned(root, started)
        failures.refuse()
        if lost:
            for file in (file for chunk in lost for file in files.get(chunk, ())):
                file.path.unlink(missing_ok=True)
            retry = plan_retry(root, name, tile, lost)
            say(
                f"{len(lost)} chunks of tile {tile} of {name} have to be made again; the next run does it (tile {retry})"
            )
        manifest = {
            "stage": "loaded",
            "transaction": name,
            "transaction_id": transaction_id,
            "tile": tile,
            "chunks": len(chunks),
            "ids": format_ranges(sorted(chunks)),
            "temporary": [stage for stage, kept in dataset.config["keep"].items() if not kept],
            "rows": rows,
            **watch.read(),
        }
        write_json(target, manifest)
    log.info("loaded %d chunks in %.1f s", len(chunks), manifest["seconds"])


if "snakemake" in globals():
    main(globals()["snakemake"])
