"""Publish the database: open what is committed to its users.

Reads the committed transactions; writes ``ingest/published.json``, and the same as the next of
``ingest/publications/``. Transactions that were started for chunks that are not selected any more, and hold none that
is loaded, are aborted first. Fails if the store holds other rows than were committed.
"""

from pathlib import Path

from abort_transaction import abort_attempt, open_attempts
from ingest_tile import add_rows
from skymill.derived import write_derived
from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.step import Stopwatch, log, start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``publish_database``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    committed = [read_json(path) for path in snakemake.input.committed]
    write_derived(dataset, dataset.results / "configs")
    for record in open_attempts(dataset.results):
        abort_attempt(dataset, record, "its chunks are not selected any more")
    store = open_store(dataset, dataset.results)
    answer = store.publish(committed)
    expected: dict[str, int] = {}
    for entry in committed:
        add_rows(expected, entry["rows"])
    for name, count in store.count_rows().items():
        if count != expected.get(name, 0):
            raise SkymillError(
                f"{name}: the store shows {count} rows, committed were {expected.get(name, 0)}; run again, and if it stays so, somebody else "
                "has changed the store: load into another database (key database)"
            )
    published = {
        "transactions": sorted(entry["transaction"] for entry in committed),
        "chunks": sum(entry["chunks"] for entry in committed),
        **answer,
        **watch.read(),
    }
    target = Path(snakemake.output[0])
    write_json(target.parents[1] / "published.json", published)
    write_json(target, published)
    log.info("published %s", answer["database"])


if "snakemake" in globals():
    main(globals()["snakemake"])
