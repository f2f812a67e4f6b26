"""Register the database and its tables with the store.

What is derived from the configuration is written below ``configs/`` before any of it is sent. Writes
``ingest/database.json``: the store, its answer, and the fingerprint of the dataset. Fails if the store holds something
that does not fit.
"""

from pathlib import Path

from skymill.derived import write_derived
from skymill.files import write_json
from skymill.step import log, start_step
from skymill.stores import open_store


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``register_database``."""
    dataset = start_step(snakemake)
    fingerprint = snakemake.params.fingerprint
    write_derived(dataset, dataset.results / "configs")
    answer = open_store(dataset, dataset.results).register(dataset, fingerprint)
    write_json(
        Path(snakemake.output[0]), {"store": dataset.config["ingest"]["store"], "fingerprint": fingerprint, **answer}
    )
    log.info("registered %s", dataset.database)


if "snakemake" in globals():
    main(globals()["snakemake"])
