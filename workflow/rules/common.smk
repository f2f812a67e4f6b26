"""Reads the configuration and the state of earlier runs, and holds the helpers that rules use. No rules."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir).parent / "scripts"))

from skymill.config import Dataset
from skymill.derived import derived_files
from skymill.driver import check_run, leave_lock, prepare_driver
from skymill.errors import SkymillError, in_words
from skymill.forecast import TileResources
from skymill.history import finished_files, read_state
from skymill.inputs import check_files
from skymill.plan import jobs_at_once, tiles_with
from skymill.progress import Reporter
from skymill.retries import TILE, home_tile
from skymill.schema import read_yaml
from skymill.selection import select_chunks

CONFIG_FOLDER = Path(workflow.configfiles[-1]).resolve().parent

try:
    prepare_driver(workflow, config)
    # Snakemake has merged the files and options already; reading them once more finds keys that stand twice.
    for path in workflow.configfiles:
        read_yaml(path)
    DATASET = Dataset.from_config(config, CONFIG_FOLDER)
    RESULTS = str(DATASET.results)
    # For a report, and only then, finished work is put back among what is pending.
    STATE = read_state(workflow, Path(RESULTS), DATASET)
    check_files(DATASET, Path(RESULTS))
    CONFIGS = list(derived_files(DATASET))
    config.update(DATASET.config)
except (SkymillError, OSError) as error:
    raise WorkflowError(in_words(error)) from None


pathvars:
    results=RESULTS,


RESOURCES = TileResources(STATE)
LOADS = STATE.store != "none"
REGULAR = [table.name for table in DATASET.tables_of("regular")]
LOADED_REGULAR = [table.name for table in DATASET.tables_of("regular") if table.ingest]
#: Whether partitioned files stay; METADATA lists them for the tool qserv-ingest, if Qserv takes the tables.
KEEPS_PARTITIONED = DATASET.config["keep"]["partitioned"] or not LOADS
METADATA = f"{RESULTS}/configs/ingest/metadata.json"
LISTS_PARTITIONED = KEEPS_PARTITIONED and any(n.startswith("ingest/") for n in CONFIGS)
MAPS = [table.name for table in DATASET.tables_of("director") if "map" in table.density]
#: Parameters of every step.
COMMON = {"folder": str(CONFIG_FOLDER), "fingerprint": STATE.fingerprint}


wildcard_constraints:
    # Only pending transactions have rules: what is committed cannot be done again, whatever the options.
    txn="|".join(STATE.pending) or "none",
    tile=TILE,
    attempt=r"\d+",
    number=r"\d+",
    wave=r"\d+",
    table="|".join(DATASET.tables),


def missing(*paths):
    """Whether any of some files below the results is missing: what is there is final and needs no rule."""
    return STATE.is_report or not all((Path(RESULTS) / path).exists() for path in paths)


def plan_of(wildcards):
    """The plan file that holds a transaction or a tile; always an input, but its time does not count."""
    return ancient(str(STATE.plan_of(wildcards.txn, wildcards.get("tile"))))


def started(wildcards):
    """The record of the present attempt of a transaction."""
    name = wildcards.txn
    return f"{RESULTS}/ingest/transactions/{name}.{STATE.pending[name].attempt}.started.json"


def aborted_before(wildcards):
    """The record that the attempt before was aborted."""
    before = int(wildcards.attempt) - 1
    path = f"{RESULTS}/ingest/transactions/{wildcards.txn}.aborted.{before}.json"
    return [path] if before >= 0 else []


def manifests(wildcards):
    """The manifests of all tiles of a transaction: loaded, or partitioned if there is no store."""
    name = wildcards.txn
    stage = "ingest" if LOADS else "partitioned"
    regular = LOADS and STATE.regular_owner == name and LOADED_REGULAR
    tiles = [*STATE.pending[name].tiles, *(["regular"] if regular else [])]
    return [f"{RESULTS}/{stage}/{name}/{tile}.json" for tile in tiles]


def missing_chunks(wildcards):
    """How many chunks of a tile are still to be loaded."""
    return STATE.missing_chunks(wildcards.txn, wildcards.tile)


def lock_of(wildcards):
    """The lock that keeps two jobs from working on one tile: one may outlive a driver that was killed."""
    tile = home_tile(wildcards.get("tile", "regular"))
    return f"{RESULTS}/locks/{wildcards.txn}/{tile}"


def bulk(path, stays):
    """A folder of bulk files, which vanishes after use or stays."""
    return directory(path) if stays else temp(directory(path))


def all_targets():
    """What the workflow makes: pending commits and the published database, or the partitioned tiles if there is no store."""
    if STATE.is_report:
        return finished_files(STATE)
    targets = [f"{RESULTS}/configs/{name}" for name in CONFIGS]
    targets += [METADATA] if LISTS_PARTITIONED else []
    targets += STATE.finished_records(STATE.pending)
    publish = LOADS and config["ingest"]["publish"]
    return targets + ([f"{RESULTS}/{STATE.publication()}"] if publish else [])


def only_targets():
    """The manifests of the tiles that hold the chunks of the configuration's key `only`."""
    if "only" not in config:
        raise WorkflowError(
            "the target load needs to know which chunks: --config only=40000:40010"
        )
    try:
        chunks = select_chunks(
            config["only"], DATASET.chunker, CONFIG_FOLDER, "only"
        ).chunks
        return [
            f"{RESULTS}/ingest/{name}/{tile}.json"
            for name, tile in tiles_with(STATE, chunks)
        ]
    except SkymillError as error:
        raise WorkflowError(str(error)) from None


#: Records that are there when all is done: in a report of those that are.
FINISHED = STATE.finished_records()
ALL_TARGETS = all_targets()
PROGRESS = Reporter(STATE, workflow.output_settings)
