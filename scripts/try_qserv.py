"""Try a Qserv cluster with a scratch database: register it, load one chunk, commit, publish, count the rows, and delete it again.

    python scripts/try_qserv.py -c configs/mine/config.yaml

The configuration must say ``ingest.store: qserv``. The scratch database is the dataset's with another name; nothing else is touched.
"""

import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

from generate_tile import generate_tile
from ingest_tile import add_rows, chunk_contributions, load
from partition_tile import partition_chunk
from skymill.config import Dataset, load_dataset
from skymill.errors import ConfigError, SkymillError
from skymill.rowmaker import RowMaker, load_density
from skymill.stores import Contribution, open_store
from skymill.textfile import TableFile
from skymill.visits import Visits, make_regular_table


def scratch_dataset(dataset: Dataset) -> Dataset:
    """The same dataset with a name of its own.

    Raises
    ------
    ConfigError
        If it is not for Qserv.
    """
    if dataset.config["ingest"]["store"] != "qserv":
        raise ConfigError(
            f"ingest.store: {dataset.config['ingest']['store']}: try_qserv needs store: qserv and ingest.qserv.url"
        )
    config = copy.deepcopy(dataset.config)
    config["database"] = f"try{os.getpid()}x{dataset.database}"[:32]
    return Dataset.from_config(config, dataset.folder)


def try_store(dataset: Dataset, folder: Path) -> dict[str, tuple[int, int]]:
    """Load the first selected chunk of a scratch dataset; returns for each table the rows sent and the rows counted."""
    chunk = int(dataset.selection().chunks[0])
    store = open_store(dataset, folder)
    regular, visits = [], {}
    for table in dataset.tables_of("regular"):
        columns = make_regular_table(dataset, table)
        with TableFile(folder / f"{table.name}.csv", table.columns) as file:
            file.add(columns)
        if table.visit is not None:
            visits[table.name] = Visits(columns, table)
        if table.ingest and file.rows:
            regular.append(Contribution(table, None, False, file.path, file.rows, file.bytes))
    maker = RowMaker(dataset, {t.name: load_density(t, dataset.folder) for t in dataset.tables_of("director")}, visits)
    made = generate_tile(dataset, maker, [chunk], folder / "generated")[str(chunk)]
    target = folder / "partitioned"
    for table in dataset.tables_of("director", "child"):
        (target / table.name).mkdir(parents=True)
    entry = partition_chunk(dataset, chunk, made, folder / "generated", target)
    store.register(dataset, dataset.fingerprint())
    print(f"registered {dataset.database}")
    transaction_id = store.start_transaction("t000", 0, {"workflow": "skymill", "transaction": "t000", "attempt": 0})
    print(f"started transaction {transaction_id}")
    sent: dict[str, int] = {}
    for name, files in (("regular", regular), ("tile", chunk_contributions(dataset, chunk, entry, target))):
        for _, rows in load(store, transaction_id, name, files):
            add_rows(sent, rows)
    print(f"loaded chunk {chunk}")
    store.commit(transaction_id)
    print("committed")
    store.publish([transaction_id])
    print("published")
    counted = store.count_rows()
    return {name: (rows, counted.get(name, 0)) for name, rows in sent.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Try a Qserv cluster with a scratch database, which is deleted again.")
    parser.add_argument(
        "-c", "--config", type=Path, required=True, help="configuration of a dataset with ingest.store: qserv"
    )
    options = parser.parse_args(arguments)
    try:
        dataset = scratch_dataset(load_dataset(options.config))
        store = open_store(dataset, Path())
        try:
            with tempfile.TemporaryDirectory(prefix="skymill-try-") as folder:
                counts = try_store(dataset, Path(folder))
        finally:
            store.delete_database()
            print(f"deleted {dataset.database}")
    except SkymillError as error:
        print(f"try_qserv: {error}", file=sys.stderr)
        return 1
    wrong = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    for name, (rows, found) in counts.items():
        print(f"{name}: {rows} rows sent, {found} counted")
    print("Some counts differ." if wrong else "All is well.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
