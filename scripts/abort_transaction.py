"""Abort an attempt of a transaction that was marked as poisoned, so that the next attempt can load its chunks again.

Waits until no job works on a tile of the transaction, aborts it in the store, removes its sentinels and manifests, and
writes ``ingest/transactions/<txn>.aborted.<attempt>.json``. Fails if the store cannot abort it; then the next run tries
again.
"""

import contextlib
import shutil
from pathlib import Path

from skymill.config import Dataset
from skymill.files import lock, read_json, write_json
from skymill.plan import poison_path
from skymill.step import log, start_step
from skymill.stores import open_store


def aborted_path(root: Path, name: str, attempt: int) -> Path:
    """The record that an attempt of a transaction was aborted."""
    return root / "ingest" / "transactions" / f"{name}.aborted.{attempt}.json"


def open_attempts(root: Path) -> list[dict]:
    """The attempts of transactions that were started, and neither committed nor aborted: their records, in order."""
    folder = root / "ingest" / "transactions"
    committed = {read_json(path)["id"] for path in folder.glob("*.committed.json")}
    started = [read_json(path) for path in sorted(folder.glob("*.started.json"))]
    return [
        record
        for record in started
        if record["id"] not in committed and not aborted_path(root, record["transaction"], record["attempt"]).exists()
    ]


def abort_attempt(dataset: Dataset, record: dict, reason: str) -> None:
    """Abort an attempt of a transaction.

    Parameters
    ----------
    dataset : `Dataset`
    record : `dict`
        The record that it was started.
    reason : `str`
        For its mark, if it has none, and its record.
    """
    root, name, attempt = dataset.results, record["transaction"], record["attempt"]
    mark = poison_path(root, name, attempt)
    if not mark.exists():
        write_json(mark, {**record, "reason": reason})
    with contextlib.ExitStack() as stack:
        # A job may have outlived its driver.
        for path in sorted((root / "locks" / name).glob("*")):
            stack.enter_context(lock(path))
        open_store(dataset, root).abort(record["id"])
        loaded = root / "ingest" / name
        for path in loaded.glob("*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(aborted_path(root, name, attempt), {**record, "reason": reason})
    log.info("aborted transaction %s (%s): %s", name, record["id"], reason)


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``abort_transaction``."""
    dataset = start_step(snakemake)
    poisoned = read_json(snakemake.input.poisoned)
    abort_attempt(dataset, poisoned, poisoned["reason"])


if "snakemake" in globals():
    main(globals()["snakemake"])
