"""Write ``configs/ingest/metadata.json``, by which the tool ``qserv-ingest`` finds the partitioned files that were kept.

Reads the manifests of all partitioned tiles. A tile whose files are not there any more is left out. Nothing can fail but the disk.
"""

from pathlib import Path

from skymill.derived import ingest_metadata
from skymill.files import write_json
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_metadata``."""
    dataset = start_step(snakemake)
    metadata = ingest_metadata(dataset, dataset.results)
    write_json(Path(snakemake.output[0]), metadata)
    for table in metadata["tables"]:
        log.info("%s: %d folders", table["schema"], len(table["data"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
