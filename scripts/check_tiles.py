"""See that all chunks of a transaction are partitioned; without a store that is the end of the way.

Reads the plan and the manifests of its tiles; writes ``partitioned/<txn>.json``. Fails if a chunk is missing because it
has failed.
"""

from pathlib import Path

import numpy as np

from skymill.failures import refuse_missing
from skymill.files import read_json, write_json
from skymill.retries import planned_chunks
from skymill.selection import format_ranges
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``check_tiles``."""
    dataset = start_step(snakemake)
    name = snakemake.wildcards.txn
    planned = planned_chunks(dataset.results, name)
    done, rows = [], {}
    for path in snakemake.input.tiles:
        chunks = read_json(path)["chunks"]
        done.append(format_ranges(np.sort(np.array(list(chunks), dtype=np.int64))))
        for entry in chunks.values():
            for table, made in entry.items():
                rows[table] = rows.get(table, 0) + made["rows"]
    refuse_missing(dataset.results, name, planned, done)
    write_json(Path(snakemake.output[0]), {"transaction": name, "chunks": len(planned), "rows": rows})
    log.info("all %d chunks of %s are partitioned", len(planned), name)


if "snakemake" in globals():
    main(globals()["snakemake"])
