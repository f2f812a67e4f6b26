"""Start a transaction of the store, or find the one that an earlier run has started for the same attempt.

Writes ``ingest/transactions/<txn>.<attempt>.started.json`` with the store's id of it.
"""

import getpass
import socket
from pathlib import Path

import skymill
from skymill.files import read_json, write_json
from skymill.selection import expand_ranges
from skymill.step import log, start_step
from skymill.stores import open_store


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "somebody"


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``start_transaction``."""
    dataset = start_step(snakemake)
    name, attempt = snakemake.wildcards.txn, int(snakemake.wildcards.attempt)
    tiles = read_json(snakemake.input.plan)["transactions"][name]
    context = {
        "workflow": "skymill",
        "transaction": name,
        "attempt": attempt,
        "fingerprint": snakemake.params.fingerprint,
        # The rest is for people who come upon it.
        "version": skymill.__version__,
        "tiles": len(tiles),
        "chunks": sum(len(expand_ranges(ranges)) for ranges in tiles.values()),
        "folder": str(dataset.results.resolve()),
        "started_by": f"{_user()}@{socket.gethostname()}",
    }
    store = open_store(dataset, dataset.results)
    transaction_id = store.start_transaction(name, attempt, context)
    write_json(Path(snakemake.output[0]), {"transaction": name, "attempt": attempt, "id": transaction_id})
    log.info("started transaction %s as %s", name, transaction_id)


if "snakemake" in globals():
    main(globals()["snakemake"])
