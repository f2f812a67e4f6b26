"""Write the plan file of a wave: which transaction and tile each newly selected chunk belongs to.

Reads nothing: the wave was worked out when the workflow was parsed. Fails if the file exists already with another content.
"""

from pathlib import Path

from skymill.errors import SkymillError
from skymill.files import read_json, write_json
from skymill.step import log, start_step


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``plan_wave``."""
    start_step(snakemake)
    path, wave = Path(snakemake.output[0]), snakemake.params.wave
    if path.exists() and read_json(path) != wave:
        raise SkymillError(f"{path} was written by another run meanwhile; run again, it will be read")
    write_json(path, wave)
    log.info("planned %d chunks in %d transactions", wave["chunks"], len(wave["transactions"]))


if "snakemake" in globals():
    main(globals()["snakemake"])
