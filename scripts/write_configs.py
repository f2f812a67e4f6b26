"""Write the configuration of the reference partitioner for each partitioned table, derived from the dataset's.

Writes ``configs/partitioner/<Table>.cfg`` below the results folder. Nothing can fail but the disk.
"""

from pathlib import Path

from skymill.derived import partitioner_config
from skymill.files import write_json
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``write_configs``."""
    dataset = start_step(snakemake)
    for path in map(Path, snakemake.output):
        write_json(path, partitioner_config(dataset, dataset.tables[path.stem]))
        log.info("wrote %s", path)


if "snakemake" in globals():
    main(globals()["snakemake"])
