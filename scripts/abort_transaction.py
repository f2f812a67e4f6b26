"""Abort an attempt of a transaction that was marked as poisoned, so that the next attempt can load its chunks again.

Waits until no job works on a tile of the transaction, aborts it in the store, removes its sentinels and manifests, and writes
``ingest/transactions/<txn>.aborted.<attempt>.json``. Fails if the store cannot abort it; then the next run tries again.
"""

import contextlib
import shutil
from pathlib import Path

from skymill.files import lock, read_json, write_json
from skymill.step import log, start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``abort_transaction``."""
    dataset = start_step(snakemake)
    poisoned = read_json(snakemake.input.poisoned)
    name = snakemake.wildcards.txn
    with contextlib.ExitStack() as stack:
        # A job may have outlived its driver.
        for path in sorted((dataset.results / "locks" / name).glob("*")):
            stack.enter_context(lock(path))
        open_store(dataset, dataset.results).abort(poisoned["id"])
        loaded = dataset.results / "ingest" / name
        for path in loaded.glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(Path(snakemake.output[0]), poisoned)
    log.info("aborted transaction %s (%s): %s", name, poisoned["id"], poisoned["reason"])


if "snakemake" in globals():
    main(globals()["snakemake"])
