"""See that the chunks of the configuration's key ``only`` are loaded: the end of the target ``load``.

Reads the plan and the manifests of the tiles that hold them. Fails if a chunk is missing because it has failed.
"""

import numpy as np

from skymill.failures import refuse_missing
from skymill.files import read_json
from skymill.retries import home_tile, planned_tiles
from skymill.selection import expand_ranges, select_chunks
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``load``."""
    dataset = start_step(snakemake)
    only = select_chunks(dataset.config["only"], dataset.chunker, dataset.folder, "only").chunks
    manifests = [read_json(path) for path in snakemake.input.tiles]
    for name in sorted({manifest["transaction"] for manifest in manifests}):
        of_name = [manifest for manifest in manifests if manifest["transaction"] == name]
        tiles = planned_tiles(dataset.results, name)
        planned = [expand_ranges(tiles[tile]) for tile in {home_tile(manifest["tile"]) for manifest in of_name}]
        wanted = np.intersect1d(np.concatenate(planned), only)
        refuse_missing(dataset.results, name, wanted, [manifest["ids"] for manifest in of_name])
        log.info("loaded %d chunks in %s", len(wanted), name)


if "snakemake" in globals():
    main(globals()["snakemake"])
