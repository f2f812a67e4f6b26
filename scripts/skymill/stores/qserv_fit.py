"""Whether a Qserv server fits a dataset: what it has already, held against what we want, and the questions of ``check_ingest``."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..config import Dataset
from ..derived import QSERV_COLUMN, database_config, loaded_tables, table_config
from ..errors import SkymillError
from ..files import read_json
from .qserv_http import QservClient, QservRefusal, find_database
from .qserv_load import address

REMEDY = "load under another name (key database), or delete it from Qserv and load again"
#: What our transactions are recognised by; the rest of their context is for people.
IDENTITY = ("workflow", "fingerprint", "transaction", "attempt")


def refuse_misfits(server: Mapping, dataset: Dataset) -> None:
    """Refuse a server that has another partitioning or other tables.

    Parameters
    ----------
    server : `Mapping`
        Its configuration.
    dataset : `Dataset`

    Raises
    ------
    SkymillError
        Naming all that differs, with both values.
    """
    misfits = list(_misfits(server, dataset))
    if misfits:
        raise SkymillError(f"the Qserv server does not fit the configuration: {'; '.join(misfits)}; {REMEDY}")


def _misfits(server: Mapping, dataset: Dataset) -> Iterator[str]:
    wanted, found = database_config(dataset), find_database(server, dataset.database)
    for family in server["database_families"]:
        same = all(family[key] == wanted[key] for key in ("num_stripes", "num_sub_stripes"))
        # The first database of a family decides its overlap for all.
        if found["family_name"] == family["name"] if found else same:
            for key in ("num_stripes", "num_sub_stripes", "overlap"):
                if not math.isclose(family[key], wanted[key], rel_tol=1e-9):
                    yield f"{key} of the family {family['name']} is {family[key]}, here it is {wanted[key]}"
    ours = {table.name: table_config(dataset, table) for table in loaded_tables(dataset)}
    for table in found["tables"] if found else ():
        if table["name"] in ours:
            yield from _differences(table, ours[table["name"]])
        else:
            yield f"{dataset.database} has a table {table['name']}, which is not loaded here"


def _differences(found: Mapping, wanted: Mapping) -> Iterator[str]:
    """How a table that the server has differs from ours, in words."""
    for key in ("is_partitioned", "director_table", "director_key", "latitude_key", "longitude_key"):
        theirs, ours = str(found[key]).rpartition(".")[2], str(wanted.get(key, ""))
        if theirs != ours:
            yield f"{key} of the table {found['name']} is {theirs!r}, here it is {ours!r}"
    columns = [
        [f"{c['name']} {' '.join(c['type'].upper().split())}" for c in schema if c["name"] != QSERV_COLUMN]
        for schema in (found["columns"], wanted["schema"])
    ]
    for i, (theirs, ours) in enumerate(itertools.zip_longest(*columns, fillvalue="missing")):
        if theirs != ours:
            yield f"column {i + 1} of the table {found['name']} is {theirs}, here it is {ours}"
            break


def refuse_strangers(transactions: list[dict], database: str, fingerprint: str) -> None:
    """Refuse a database that holds rows of others.

    Parameters
    ----------
    transactions : `list` [`dict`]
        Those of the database, with their contexts.
    database, fingerprint : `str`
        Its name, and the fingerprint of the dataset.

    Raises
    ------
    SkymillError
        Naming the transaction.
    """
    for transaction in transactions:
        context = transaction["context"]
        ours = context.get("workflow") == "skymill" and context.get("fingerprint") == fingerprint
        if not ours and transaction["state"] != "ABORTED":
            raise SkymillError(
                f"the Qserv database {database} has a transaction {transaction['id']} ({transaction['state']}) that is not of this "
                f"dataset; {REMEDY}"
            )


def check_server(client: QservClient, dataset: Dataset, root: Path) -> list[tuple[str, bool, str]]:
    """Whether a server can be used for a dataset, without changing anything: question, answer, detail.

    Nothing is tried again here: who asks wants to know how it is now. Without a controller that answers nothing else is
    asked.

    Parameters
    ----------
    client : `QservClient`
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``: what it records as committed may be published.
    """
    once = copy.copy(client)
    once.patience_s = 0.0
    questions: dict[str, Callable[[], str]] = {
        "the controller answers": lambda: f"{once.url}, version {once.check_version()}",
        **{f"{key} is accepted": functools.partial(_check_key, once, key) for key in once.key_names},
        "the workers answer, and accept the key": functools.partial(_check_workers, once),
        f"the database {dataset.database} fits": functools.partial(_check_database, once, dataset, root),
    }
    answers = []
    for question, answer in questions.items():
        try:
            answers.append((question, True, answer()))
        except SkymillError as error:
            answers.append((question, False, str(error)))
            if len(answers) == 1:
                break
    return answers


def _check_key(client: QservClient, key: str) -> str:
    # It does not say which chunk: who has the right key is refused for that.
    _expect_refusal(client, "POST", "/ingest/chunk", key=key)
    return "yes"


def _expect_refusal(client: QservClient, method: str, path: str, **options: str) -> None:
    """Make a call that must be refused, but not for its key."""
    try:
        client.call(method, path, **options)
    except QservRefusal as error:
        if error.is_for_key:
            raise


def _check_workers(client: QservClient) -> str:
    server = client.server()
    workers = able_workers(server)
    if not workers:
        raise SkymillError("no worker is enabled and writable; see the configuration of Qserv's replication system")
    for url in workers.values():
        client.call("GET", "/meta/version", url=url)
        # There is no contribution 0 to try again.
        _expect_refusal(client, "PUT", "/ingest/file/0", url=url)
    left_out = [worker["name"] for worker in server["workers"] if worker["name"] not in workers]
    more = f"; not enabled, or read-only, and so left out: {', '.join(left_out)}" if left_out else ""
    return ", ".join(f"{name} at {url}" for name, url in workers.items()) + more


def able_workers(server: Mapping) -> dict[str, str]:
    """Names and addresses of the workers that can be loaded."""
    able = [worker for worker in server["workers"] if worker["is-enabled"] and not worker["is-read-only"]]
    places = [(w["name"], w["http-loader-host"], w["http-loader-port"]) for w in able]
    return dict(
        address({"worker": name, "http_host": host["addr"], "http_host_name": host["name"], "http_port": port})
        for name, host, port in places
    )


def _check_database(client: QservClient, dataset: Dataset, root: Path) -> str:
    server, name = client.server(), dataset.database
    refuse_misfits(server, dataset)
    found = find_database(server, name)
    if found is None:
        return "it is not there yet"
    transactions = client.transactions(name, include_context=1)
    refuse_strangers(transactions, name, dataset.fingerprint())
    states = collections.Counter(transaction["state"] for transaction in transactions)
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    state = "published, and so frozen" if found["is_published"] else "not published"
    recorded = {read_json(path)["id"] for path in (root / "ingest" / "transactions").glob("*.committed.json")}
    foreign = [str(t["id"]) for t in transactions if t["state"] == "FINISHED" and str(t["id"]) not in recorded]
    if found["is_published"] and (foreign or not recorded):
        raise SkymillError(
            f"the Qserv database {name} is {state}; {root / 'ingest'} records nothing of its commits (transactions: {listed}), so that they "
            f"would be loaded anew, which is refused: {REMEDY}"
        )
    return f"{state}, {len(found['tables'])} tables, transactions: {listed}"
