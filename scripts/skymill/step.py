"""What every step script does first and last: logging to the rule's log file, errors in words, time that it took."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

from .config import Dataset
from .errors import SkymillError, machine_error

log = logging.getLogger("skymill")
#: The environment variable that is set if Snakemake prints the log of a job that fails.
LOGS_SHOWN = "SKYMILL_LOGS_SHOWN"


def start_step(snakemake) -> Dataset:  # noqa: ANN001 - made by Snakemake
    """Log to the rule's log file, an error that ends the step included, and return the dataset.

    An error of ours, or of the machine, is printed as its message; any other with its traceback. The log has all
    tracebacks but ours. An error of ours is not printed if Snakemake prints the log.
    """
    path = Path(snakemake.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=path, filemode="w", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        expected = issubclass(kind, (SkymillError, KeyboardInterrupt))
        text = machine_error(error) or str(error) or kind.__name__
        log.error("%s", text, exc_info=None if expected else (kind, error, trace))
        if issubclass(kind, SkymillError) and LOGS_SHOWN in os.environ:
            return
        if expected or machine_error(error):
            print(f"{snakemake.rule}: {text}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = report
    return Dataset.from_config(snakemake.config, Path(snakemake.params.folder), check=False)


class Stopwatch:
    """Time since it was made: on the clock and of the processor, children included; and on which machine."""

    def __init__(self):
        self._wall = time.monotonic()
        self._cpu = _cpu_seconds()

    def read(self) -> dict[str, float | str]:
        """``seconds`` and ``cpu_seconds`` so far, ``host``, and the present time (UTC) as ``ended``."""
        return {
            "seconds": round(time.monotonic() - self._wall, 3),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 3),
            "host": os.uname().nodename,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
