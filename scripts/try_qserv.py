"""Try a Qserv cluster with a scratch database: register it, load one chunk, commit, publish, count the rows, and delete it again.

    python scripts/try_qserv.py -c configs/mine/config.yaml

The configuration must say ``ingest.store: qserv``, and where the administrator's key is: a published database is
deleted by nobody else. The scratch database is the dataset's under a name that is not taken; nothing else is touched.
"""

import argparse
import copy
import secrets
import sys
import tempfile
from pathlib import Path

from generate_tile import generate_tile
from ingest_tile import add_rows, chunk_contributions, load
from partition_tile import partition_chunk
from skymill.config import Dataset, load_dataset
from skymill.errors import ConfigError, SkymillError
from skymill.rowmaker import RowMaker, load_density
from skymill.stores import Contribution, Store, open_store
from skymill.textfile import TableFile
from skymill.visits import Visits, make_regular_table

#: Look for a chunk with rows among so many.
TRIED_CHUNKS = 100


def scratch_dataset(dataset: Dataset) -> Dataset:
    """The same dataset with a name of its own.

    Raises
    ------
    ConfigError
        If it is not for Qserv, or could not be deleted again.
    """
    ingest = dataset.config["ingest"]
    if ingest["store"] != "qserv":
        raise ConfigError(f"ingest.store: {ingest['store']}: try_qserv needs store: qserv and ingest.qserv.url")
    if "admin_auth_key" not in ingest.get("qserv", {}):
        raise ConfigError(
            "ingest.qserv.admin_auth_key: the key is missing; the scratch database is published, and then only the administrator can delete "
            "it. Write {env: NAME} or {file: path}; an empty variable will do for a server that asks for none"
        )
    config = copy.deepcopy(dataset.config)
    config["database"] = f"try{secrets.token_hex(4)}"
    return Dataset.from_config(config, dataset.folder)


def try_store(dataset: Dataset, folder: Path) -> dict[str, tuple[int, int]]:
    """Load the first selected chunk with rows of a scratch dataset; returns for each table the rows sent and the rows counted.

    Raises
    ------
    SkymillError
        If the server does not do its part, or the first `TRIED_CHUNKS` chunks have no rows.
    """
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
    for chunk in dataset.selection().chunks[:TRIED_CHUNKS].tolist():
        made = generate_tile(dataset, maker, [chunk], folder / "generated")[str(chunk)]
        if any(made[table.name]["rows"] for table in dataset.tables_of("director") if table.ingest):
            break
    else:
        raise SkymillError(f"the first {TRIED_CHUNKS} chunks of the selection have no rows; select others (key chunks)")
    target = folder / "partitioned"
    for table in dataset.tables_of("director", "child"):
        (target / table.name).mkdir(parents=True)
    entry = partition_chunk(dataset, chunk, made, folder / "generated", target)
    store.register(dataset, dataset.fingerprint())
    print(f"registered {dataset.database}")
    context = {"workflow": "skymill", "fingerprint": dataset.fingerprint(), "transaction": "t000", "attempt": 0}
    transaction_id = store.start_transaction("t000", 0, context)
    print(f"started transaction {transaction_id}")
    sent: dict[str, int] = {}
    for name, files in (("regular", regular), ("tile", chunk_contributions(dataset, chunk, entry, target))):
        for _, rows in load(store, transaction_id, name, files):
            add_rows(sent, rows)
    print(f"loaded chunk {chunk}")
    store.commit(transaction_id, sent)
    print("committed")
    store.publish([{"id": transaction_id, "rows": sent}])
    print("published")
    counted = store.count_rows()
    return {name: (rows, counted.get(name, 0)) for name, rows in sent.items()}


def clean_up(store: Store, name: str) -> bool:
    """Delete the scratch database, or say that it is still there; what went wrong before is told all the same."""
    try:
        store.delete_database()
    except SkymillError as error:
        print(f"try_qserv: the scratch database {name} is still there, delete it by hand: {error}", file=sys.stderr)
        return False
    print(f"deleted {name}")
    return True


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
        if store.client.database(dataset.database) is not None:
            raise SkymillError(f"there is a database {dataset.database} already, by chance; try again")
        try:
            with tempfile.TemporaryDirectory(prefix="skymill-try-") as folder:
                counts = try_store(dataset, Path(folder))
        finally:
            is_clean = clean_up(store, dataset.database)
    except SkymillError as error:
        print(f"try_qserv: {error}", file=sys.stderr)
        return 1
    wrong = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
    for name, (rows, found) in counts.items():
        print(f"{name}: {rows} rows sent, {found} counted")
    print("All is well." if is_clean and not wrong else "Not all is well.")
    return 0 if is_clean and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
