"""Load the regular tables, whole, in the first transaction.

Reads ``visits/<Table>.csv`` and the started transaction; writes ``ingest/<txn>/regular.json``. Fails if the store has
other rows than were sent.
"""

from pathlib import Path

from ingest_tile import add_rows, load, poisoning, refuse_poisoned
from skymill.files import lock, read_json, write_json
from skymill.step import Stopwatch, log, start_step
from skymill.stores import Contribution, open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``ingest_regular``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    target = Path(snakemake.output[0])
    with lock(Path(snakemake.params.lock)):
        started = read_json(snakemake.input.started)
        transaction_id = started["id"]
        refuse_poisoned(dataset.results, started)
        store = open_store(dataset, dataset.results)
        files = []
        for path in map(Path, snakemake.input.tables):
            with open(path, "rb") as file:
                rows = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
            if rows:
                files.append(Contribution(dataset.tables[path.stem], None, False, path, rows, path.stat().st_size))
        loaded: dict[str, int] = {}
        with poisoning(dataset.results, started):
            for _, rows in load(store, transaction_id, "regular", files):
                add_rows(loaded, rows)
        manifest = {
            "stage": "loaded",
            "transaction": snakemake.wildcards.txn,
            "transaction_id": transaction_id,
            "tile": "regular",
            "chunks": 0,
            "ids": "",
            "rows": loaded,
            **watch.read(),
        }
        write_json(target, manifest)
    log.info("loaded %s", loaded)


if "snakemake" in globals():
    main(globals()["snakemake"])
