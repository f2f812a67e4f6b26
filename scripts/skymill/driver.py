"""What is asked of Snakemake's own process."""

from __future__ import annotations

import contextlib
import gc
import logging

#: Targets that only read what others make, and write reports.
READING = {"status", "plan", "report", "write_sky_page"}
#: How Snakemake's messages begin that tell of no job and no error, and that ``--quiet progress`` leaves all the same.
ROUTINE = ("Select jobs to execute...", "Execute ", "Building DAG of jobs...", "Using shell: ", "Conda environments: ")


def collect_seldom() -> None:
    """Look for garbage a hundredth as often: Snakemake makes objects by the hundred thousand, which live as long as it does."""
    gc.set_threshold(100_000, 50, 100)


def leave_out_routine(settings: object) -> None:
    """With ``--quiet progress``, leave Snakemake's routine messages out of what it prints; its log file has them.

    Parameters
    ----------
    settings : `object`
        Snakemake's settings of its output.
    """
    from snakemake.logging import logger

    if not any(str(what) == "progress" for what in getattr(settings, "quiet", None) or ()):
        return
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_no_routine)


def _is_no_routine(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not str(record.msg).startswith(ROUTINE)


def leave_lock(workflow: object) -> list[str]:
    """As input function of a target that only reads: let it run beside another run, and leave the lock of that alone.

    Snakemake locks files, not the folder, so that such a target may run at any time. But when it ends it removes all locks, those of others
    included. At the time when inputs are worked out, it has not locked anything yet.

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
