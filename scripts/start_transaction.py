"""Start a transaction of the store, or find the one that an earlier run has started for the same attempt.

Writes ``ingest/transactions/<txn>.<attempt>.started.json`` with the store's id of it.
"""

from pathlib import Path

from skymill.files import write_json
from skymill.step import log, start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``start_transaction``."""
    dataset = start_step(snakemake)
    name, attempt = snakemake.wildcards.txn, int(snakemake.wildcards.attempt)
    context = {
        "workflow": "skymill",
        "transaction": name,
        "attempt": attempt,
        "fingerprint": snakemake.params.fingerprint,
    }
    store = open_store(dataset, dataset.results)
    transaction_id = store.start_transaction(name, attempt, context)
    write_json(Path(snakemake.output[0]), {"transaction": name, "attempt": attempt, "id": transaction_id})
    log.info("started transaction %s as %s", name, transaction_id)


if "snakemake" in globals():
    main(globals()["snakemake"])
