"""Make a regular table (the visits among them) for the whole sky: generate it, or read it from the file that the configuration names.

Writes ``visits/<Table>.csv`` in the ingest dialect and ``visits/<Table>.npz``, the same as arrays for the tile jobs.

Fails if the file lacks a column, or a visit has no id, filter or place on the sky.
"""

from pathlib import Path

from skymill.files import written_aside
from skymill.step import Stopwatch, log, start_step
from skymill.textfile import TableFile
from skymill.visits import make_regular_table, save_arrays


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``make_regular``."""
    watch = Stopwatch()
    dataset = start_step(snakemake)
    table = dataset.tables[snakemake.wildcards.table]
    columns = make_regular_table(dataset, table)
    target = Path(snakemake.output.csv)
    with TableFile(target, table.columns) as file:
        file.add(columns)
    if not file.rows:
        target.touch()
    arrays = Path(snakemake.output.arrays)
    with written_aside(arrays) as aside:
        save_arrays(aside, columns)
    log.info("made %d rows of %s in %.1f s", file.rows, table.name, watch.read()["seconds"])


if "snakemake" in globals():
    main(globals()["snakemake"])
