"""Write what other tools need, derived from the dataset's configuration.

Writes below ``configs/``: ``partitioner/<Table>.cfg`` for the reference partitioner, and ``ingest/*.json``, what
Qserv's ingest service is told of the database, its tables and its indexes. Nothing can fail but the disk.
"""

from pathlib import Path

from skymill.derived import derived_files
from skymill.files import write_json
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_configs``."""
    dataset = start_step(snakemake)
    files = derived_files(dataset)
    for path in map(Path, snakemake.output):
        write_json(path, files[str(path.relative_to(dataset.results / "configs"))])
        log.info("wrote %s", path)


if "snakemake" in globals():
    main(globals()["snakemake"])
