"""Write the report: sky.html, and report.html beside it, which is Snakemake's own.

Reads all records of the dataset, and what Snakemake has recorded of its jobs. Snakemake is started once more for its
report, without a lock, and runs nothing. Fails if there is nothing to report yet, or Snakemake cannot make its report.
"""

import subprocess
import sys
from pathlib import Path

from skymill.errors import SkymillError
from skymill.run_records import read_records
from skymill.step import log, start_step
from write_sky_page import write_sky_page


def write_snakemake_report(path: Path, snakefile: str, configfiles: list[str], config_args: list[str]) -> None:
    """Have Snakemake write its report.

    Parameters
    ----------
    path : `pathlib.Path`
        Where it goes.
    snakefile : `str`
    configfiles, config_args : `list` [`str`]
        The configuration of the run, as on Snakemake's command line.

    Raises
    ------
    SkymillError
        With the end of what Snakemake says, if it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--configfile", *configfiles]
    command += ["--config", *config_args] if config_args else []
    # A job of another run may be at work on some file; its record is no obstacle here.
    command += ["--workflow-profile", "none", "--rerun-incomplete", "--rerun-triggers", "mtime", "--report", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    log.info("%s", done.stderr)
    if done.returncode:
        end = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise SkymillError(f"snakemake --report failed; its last lines are:\n{end}")


def main(snakemake) -> None:  # noqa: ANN001 - made by Snakemake
    """Run the step for the rule ``report``."""
    dataset = start_step(snakemake)
    params = snakemake.params
    records = read_records(dataset.results, dataset)
    if not records.jobs:
        raise SkymillError(
            f"{dataset.results}: nothing has been made yet, so there is nothing to report; run snakemake first"
        )
    page = write_sky_page(records, Path(params.templates))
    print(f"wrote {page}")
    report = page.with_name("report.html")
    write_snakemake_report(report, params.snakefile, params.configfiles, params.config_args)
    log.info("wrote %s and %s", page, report)
    print(f"wrote {report}")


if "snakemake" in globals():
    main(globals()["snakemake"])
