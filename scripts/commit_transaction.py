"""Commit a transaction: all its tiles are loaded, and from now on they are final.

Reads the manifests of its tiles; writes ``ingest/transactions/<txn>.committed.json``. Fails if a manifest belongs to another attempt, or
the store refuses.
"""

from pathlib import Path

from ingest_tile import add_rows, poisoning, refuse_poisoned
from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.step import log, start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``commit_transaction``."""
    dataset = start_step(snakemake)
    started = read_json(snakemake.input.started)
    transaction_id = started["id"]
    refuse_poisoned(dataset.results, started)
    rows: dict[str, int] = {}
    chunks = 0
    for path in snakemake.input.tiles:
        manifest = read_json(path)
        if manifest["transaction_id"] != transaction_id:
            raise SkymillError(
                f"{path} was loaded in transaction {manifest['transaction_id']}, not in {transaction_id}; remove it and run again"
            )
        chunks += manifest["chunks"]
        add_rows(rows, manifest["rows"])
    with poisoning(dataset.results, started):
        open_store(dataset, dataset.results).commit(transaction_id)
    committed = {"transaction": snakemake.wildcards.txn, "id": transaction_id, "chunks": chunks, "rows": rows}
    write_json(Path(snakemake.output[0]), committed)
    log.info("committed transaction %s: %d chunks", transaction_id, chunks)


if "snakemake" in globals():
    main(globals()["snakemake"])
