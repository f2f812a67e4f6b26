"""Puts finished work back among the rules, so that Snakemake's own report tells the whole history; for ``--report`` only.

Finished work has no rule, so that nothing can do it again. But ``snakemake --report`` tells only of what has a rule. So
when, and only when, Snakemake was started to write a report, each finished tile and record gets its rule back, and
Snakemake loses its ways to run or delete anything.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.io import report

from .config import Dataset
from .plan import State

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

#: Folders of manifests, in the order of the stages.
STAGES = ("generated", "partitioned", "ingest")
#: What Snakemake's workflow could do to finished work.
FORBIDDEN = ("execute", "delete_output", "generate_unit_tests")
#: A wave that stands for every one, as the wildcard of the rule that plans it.
ANY_WAVE = {"wave": "{wave}", "chunks": 0, "transactions": {}}


@dataclass(frozen=True)
class Product:
    """A final product that the report shows, if it is there.

    Attributes
    ----------
    path : `str`
        Below ``results/<database>``.
    caption : `str`
        Name of a file in ``workflow/report``, without its suffix.
    category, label : `str`
        Where the report lists it, and in which words.
    """

    path: str
    caption: str
    category: str
    label: str


PRODUCTS = (
    Product("report/sky.html", "sky", "Survey", "sky maps, figures and failures"),
    Product("plan.md", "plan", "Survey", "forecast of the plan"),
    Product("status.md", "status", "Survey", "what is done, and what is missing"),
    Product("verify.md", "verify", "Proof", "the store against the truth"),
)


def asks_for_report(arguments: Sequence[str]) -> bool:
    """Whether a command line of Snakemake asks for a report, and for nothing that runs a job before."""
    wanted = any(argument == "--report" or argument.startswith("--report=") for argument in arguments)
    # Options may be cut short: "--report-a" is "--report-after-run".
    return wanted and not any(argument.startswith("--report-a") for argument in arguments)


def read_state(workflow: Workflow, root: Path, dataset: Dataset) -> State:
    """The state of a dataset, as the rules need it.

    Parameters
    ----------
    workflow : `snakemake.workflow.Workflow`
        Can do nothing but report afterwards, if it was started to write a report.
    root : `pathlib.Path`
        ``results/<database>``.
    dataset : `Dataset`

    Returns
    -------
    state : `State`
        That of `finished_work`, if Snakemake was started to write a report.
    """
    state = State.read(root, dataset)
    if not asks_for_report(sys.argv[1:]):
        return state

    def refuse(*_arguments: object, **_options: object) -> None:
        raise WorkflowError(
            "with --report finished work has its rules back, so nothing may run or be deleted; leave --report out to run the workflow"
        )

    for name in FORBIDDEN:
        setattr(workflow, name, refuse)
    # Snakemake reads the conda environment of each job anew; of thousands, with the parser in Python, that took half
    # the time.
    yaml.Loader = getattr(yaml, "CLoader", yaml.Loader)
    return finished_work(state)


def finished_work(state: State) -> State:
    """A state in which all that is finished is pending, and nothing else is; of no use but to report."""
    pending = {}
    for transaction in state.transactions.values():
        # Retries of tiles are among them, which a transaction that is committed does not list any more.
        names = {path.stem for stage in STAGES for path in (state.root / stage / transaction.name).glob("s*.json")}
        tiles = {tile: transaction.tiles.get(tile, "") for tile in sorted(names)}
        if tiles:
            pending[transaction.name] = replace(transaction, tiles=tiles)
    return replace(state, pending=pending, new_wave=ANY_WAVE, is_report=True)


def finished_files(state: State) -> list[str]:
    """What the finished tiles and records of a state have made, for the target of a report."""
    root = state.root
    paths = [
        *root.glob("configs/*/*"),
        *root.glob("ingest/publications/*.json"),
        *root.glob("ingest/plan_*.json"),
        *(
            root / f"partitioned/{name}.json"
            for name, t in state.pending.items()
            if t.partitioned and state.store == "none"
        ),
    ]
    for name, transaction in state.pending.items():
        paths += root.glob(f"ingest/transactions/{name}.committed.json")
        paths += root.glob(f"ingest/transactions/{name}.aborted.*.json")
        for tile in transaction.tiles:
            paths += _manifests(root, name, tile)[-1:]
        paths += root.glob(f"ingest/{name}/regular.json")
    return [str(path) for path in paths]


def flag_products(root: Path, captions: str) -> list[str]:
    """The final products that are there, marked for the report; ``captions`` is the folder of their captions."""
    return [
        report(
            str(root / product.path),
            caption=f"{captions}/{product.caption}.rst",
            category=product.category,
            labels={"shows": product.label},
        )
        for product in PRODUCTS
        if (root / product.path).exists()
    ]


def _manifests(root: Path, transaction: str, tile: str) -> list[Path]:
    """The manifests of a tile that are there, in the order of the stages."""
    paths = [root / stage / transaction / f"{tile}.json" for stage in STAGES]
    return [path for path in paths if path.exists()]
