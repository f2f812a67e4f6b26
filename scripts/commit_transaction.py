"""Commit a transaction: all its tiles are loaded, and from now on they are final.

Reads the plan and the manifests of its tiles; writes ``ingest/transactions/<txn>.committed.json``, and removes bulk
files that a killed run has left behind. Fails if a chunk is missing because it has failed, a manifest belongs to
another attempt, or the store refuses.
"""

import shutil
from pathlib import Path

from ingest_tile import add_rows, poisoning, refuse_poisoned
from skymill.errors import SkymillError
from skymill.failures import refuse_missing
from skymill.files import read_json, write_json
from skymill.retries import planned_chunks
from skymill.step import log, start_step
from skymill.stores import open_store


def remove_leftovers(root: Path, manifests: list[dict]) -> None:
    """Remove bulk files of loaded tiles that are not to be kept: a driver was killed before it could."""
    for manifest in manifests:
        for stage in manifest.get("temporary", ()):
            shutil.rmtree(root / stage / manifest["transaction"] / manifest["tile"], ignore_errors=True)


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``commit_transaction``."""
    dataset = start_step(snakemake)
    started = read_json(snakemake.input.started)
    transaction_id = started["id"]
    refuse_poisoned(dataset.results, started)
    name = snakemake.wildcards.txn
    planned = planned_chunks(dataset.results, name)
    rows: dict[str, int] = {}
    manifests = [read_json(path) for path in snakemake.input.tiles]
    for path, manifest in zip(snakemake.input.tiles, manifests, strict=True):
        if manifest["transaction_id"] != transaction_id:
            raise SkymillError(
                f"{path} was loaded in transaction {manifest['transaction_id']}, not in {transaction_id}; remove it and run again"
            )
        add_rows(rows, manifest["rows"])
    refuse_missing(dataset.results, name, planned, [manifest["ids"] for manifest in manifests])
    with poisoning(dataset.results, started):
        told = open_store(dataset, dataset.results).commit(transaction_id, rows)
    committed = {"transaction": name, "id": transaction_id, "chunks": len(planned), "rows": rows, **told}
    write_json(Path(snakemake.output[0]), committed)
    remove_leftovers(dataset.results, manifests)
    log.info("committed transaction %s: %d chunks", transaction_id, len(planned))


if "snakemake" in globals():
    main(globals()["snakemake"])
