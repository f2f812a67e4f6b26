"""Convert a density map to what the tile jobs read: float64, nested order, rows per square degree, as ``.npy``.

Reads the map that the configuration names (``.npy`` or ``.fits``). Fails if its length is not that of a HEALPix map, or
a value is negative or not finite.
"""

from pathlib import Path

import numpy as np

from skymill.density import read_density_map
from skymill.errors import ConfigError
from skymill.files import written_aside
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``convert_density``."""
    dataset = start_step(snakemake)
    spec = dataset.tables[snakemake.wildcards.table].density
    try:
        nested = read_density_map(dataset.folder / spec["map"], spec["ordering"], spec["scale"])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    target = Path(snakemake.output[0])
    with written_aside(target) as aside, open(aside, "wb") as file:
        np.save(file, nested)
    log.info("converted a map of %d pixels", len(nested))


if "snakemake" in globals():
    main(globals()["snakemake"])
