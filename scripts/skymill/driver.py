"""What is asked of Snakemake's own process."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping

from .errors import ConfigError
from .inputs import check_needs
from .plan import State
from .slurm import prepare_slurm
from .step import LOGS_SHOWN

#: Targets that only read what others make, and write reports.
READING = {"status", "plan", "report", "write_sky_page"}


def prepare_driver(workflow: object, config: Mapping) -> None:
    """Tell the steps whether Snakemake shows the log of a job that fails; and have garbage looked for a hundredth as often.

    Snakemake makes objects by the hundred thousand, which live as long as it does.

    Raises
    ------
    ConfigError
        If the key ``only`` would be ignored.
    """
    if "only" in config and workflow.is_main_process and not {"load", "verify"} & set(sys.argv[1:]):
        raise ConfigError("only: it needs the target load or verify, as `snakemake load --config only=40000:40010`")
    gc.set_threshold(100_000, 50, 100)
    settings = workflow.output_settings
    if settings.show_failed_logs and not {kind.name for kind in settings.quiet or ()} & {"ALL", "RULES"}:
        os.environ[LOGS_SHOWN] = "1"


def check_run(workflow: object, state: State) -> None:
    """Look, before the first job starts, for what the jobs of a run need and what would else be missed by each of them.

    Raises
    ------
    SkymillError
        If SLURM does not answer, a key cannot be had, or something else is missing.
    """
    jobs = list(workflow.dag.needrun_jobs())
    here = {job.rule.name for job in jobs if job.is_local}
    elsewhere = {job.rule.name for job in jobs} - here
    if elsewhere and workflow.executor_plugin.name == "slurm":
        prepare_slurm()
    check_needs(state, here, elsewhere)


def leave_lock(workflow: object) -> list[str]:
    """As input function of a target that only reads: let it run beside another run, and leave the lock of that alone.

    Snakemake locks files, not the folder, so that such a target may run at any time. But when it ends it removes all
    locks, those of others included. At the time when inputs are worked out, it has not locked anything yet.

    Returns
    -------
    files : `list` [`str`]
        No inputs.
    """
    # In another version of Snakemake its inside may look otherwise; then it locks as it always does.
    with contextlib.suppress(AttributeError):
        if set(map(str, workflow.dag_settings.targets)) <= READING:
            workflow.persistence.lock = workflow.persistence.noop
            workflow.persistence.unlock = workflow.persistence.noop
    return []
