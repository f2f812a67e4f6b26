"""The Qserv store: registers, loads, commits and publishes through the REST API of Qserv's ingest system, version 55.

The server knows more than our files do, so each step asks it first and does what is left. A commit of the server does not look at what
the contributions became; here it does. Rows are never sent to a table that was published once: no abort could take them back.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..config import Dataset, Table
from ..derived import QSERV_COLUMN, database_config, index_configs, table_config
from ..errors import ConfigError, PoisonedError, SkymillError
from . import Contribution
from .qserv_http import LONG_S, QservClient, QservNoAnswer, QservRefusal, growing_delays
from .qserv_load import Loader, address

log = logging.getLogger("skymill.qserv")

#: States of a transaction from which it can be aborted; a call waits for another one that is ending it.
ABORTABLE = ("STARTED", "IS_STARTING", "IS_FINISHING", "IS_ABORTING", "START_FAILED", "FINISH_FAILED", "ABORT_FAILED")
REMEDY = "load under another name (key database), or delete it from Qserv and load again"


class QservStore:
    """The store in a Qserv cluster; see `skymill.stores.Store` for what its methods do.

    Parameters
    ----------
    dataset : `Dataset`
    root : `pathlib.Path`
        ``results/<database>``.

    Raises
    ------
    SkymillError
        If the configuration does not say where the cluster is, or a key cannot be had.
    """

    def __init__(self, dataset: Dataset, root: Path):
        self.dataset = dataset
        self.name = dataset.database
        self.options = options = dataset.config["ingest"].get("qserv", {})
        for key in ("url", *(["base_url"] if options.get("send") == "http" else [])):
            if key not in options:
                raise ConfigError(f"ingest.qserv.{key}: the key is missing; the store qserv needs it")
        keys = [_read_key(key, options.get(key), dataset.folder) for key in ("auth_key", "admin_auth_key")]
        self.client = QservClient(options["url"], *keys, options["timeout_s"])

    # -- database ---------------------------------------------------------------------------------------------------

    def register(self, dataset: Dataset, fingerprint: str) -> dict:
        tables = [table_config(dataset, table) for table in self._tables()]
        index_configs(dataset)  # what is wrong there is to be said now, not when all is published
        version = self.client.check_version()
        server = self.client.server()
        self._refuse_misfits(server)
        found = self._database(server)
        if found is None:
            self.client.call("POST", "/ingest/database", database_config(dataset))
        elif found["is_published"]:
            raise SkymillError(f"the Qserv database {self.name} is published, and so frozen; {REMEDY}")
        else:
            self._refuse_strangers(fingerprint)
        known = [table["name"] for table in found["tables"]] if found else []
        for table in tables:
            if table["table"] not in known:
                self._register_table(table)
        self._refuse_misfits(self.client.server())
        return {"database": self.name, "api_version": version, "workers": list(_workers(server))}

    def _register_table(self, table: Mapping) -> None:
        try:
            self.client.call("POST", "/ingest/table", table)
        except QservRefusal as error:
            # It stays registered when a worker could not make it, and nothing could be loaded into it.
            if "already exists" not in str(error):
                with contextlib.suppress(SkymillError):
                    self.client.call("DELETE", f"/ingest/table/{self.name}/{table['table']}")
            raise

    def _refuse_misfits(self, server: Mapping) -> None:
        misfits = list(self._misfits(server))
        if misfits:
            raise SkymillError(f"the Qserv server does not fit the configuration: {'; '.join(misfits)}; {REMEDY}")

    def _misfits(self, server: Mapping) -> Iterator[str]:
        """What the server has otherwise than we want it."""
        wanted, found = database_config(self.dataset), self._database(server)
        for family in server["database_families"]:
            same = all(family[key] == wanted[key] for key in ("num_stripes", "num_sub_stripes"))
            # The first database of a family decides its overlap for all.
            if found["family_name"] == family["name"] if found else same:
                for key in ("num_stripes", "num_sub_stripes", "overlap"):
                    if not math.isclose(family[key], wanted[key], rel_tol=1e-9):
                        yield f"{key} of the family {family['name']} is {family[key]}, here it is {wanted[key]}"
        ours = {table.name: table_config(self.dataset, table) for table in self._tables()}
        for table in found["tables"] if found else ():
            if table["name"] in ours:
                yield from _differences(table, ours[table["name"]])
            else:
                yield f"{self.name} has a table {table['name']}, which is not loaded here"

    def _refuse_strangers(self, fingerprint: str) -> None:
        """Refuse a database that holds rows of others."""
        for transaction in self.client.transactions(self.name, include_context=1):
            context = transaction["context"]
            ours = context.get("workflow") == "skymill" and context.get("fingerprint") == fingerprint
            if not ours and transaction["state"] != "ABORTED":
                raise SkymillError(
                    f"the Qserv database {self.name} has a transaction {transaction['id']} ({transaction['state']}) that is not of this "
                    f"dataset; {REMEDY}"
                )

    def delete_database(self) -> None:
        """Delete the database, published or not, and all that is in it. What is not there is no error."""
        if self._database(self.client.server()) is not None:
            key = self.client.key_names[-1]
            self.client.call("DELETE", f"/ingest/database/{self.name}", key=key, timeout_s=LONG_S)

    # -- transactions -----------------------------------------------------------------------------------------------

    def start_transaction(self, name: str, attempt: int, context: dict) -> str:
        found = self._started(context)
        if found is not None:
            return found
        try:
            answer = self.client.call("POST", "/ingest/trans", {"database": self.name, "context": context})
        except QservNoAnswer as error:
            found = self._started(context)
            if found is None:
                raise error
            return found
        return str(answer["databases"][self.name]["transactions"][0]["id"])

    def _started(self, context: Mapping) -> str | None:
        """The transaction with a context that can be loaded, or is committed; one that failed is aborted."""
        for transaction in self.client.transactions(self.name, include_context=1):
            is_same = all(transaction["context"].get(key) == value for key, value in context.items())
            transaction_id, state = str(transaction["id"]), transaction["state"]
            if is_same and state in ("STARTED", "FINISHED"):
                return transaction_id
            if is_same and state != "ABORTED":
                self.abort(transaction_id)
        return None

    def contribute(
        self, transaction_id: str, tile: str, contributions: Sequence[Contribution]
    ) -> Iterator[tuple[int | None, int]]:
        if not contributions:
            return
        may_send = self._takes_rows(transaction_id)
        rows: dict[int | None, int] = {}
        for contribution in contributions:
            rows[contribution.chunk] = rows.get(contribution.chunk, 0) + contribution.rows
        loader = Loader(self.client, self.name, transaction_id, self.options)
        for chunk in loader.load(contributions, may_send):
            yield chunk, rows[chunk]

    def _takes_rows(self, transaction_id: str) -> bool:
        """Whether a transaction is open; if not, it is committed."""
        state = self.client.transaction(self.name, transaction_id)["state"]
        if state == "FINISHED":
            return False
        if state != "STARTED":
            kind = SkymillError if state.startswith("IS_") else PoisonedError
            raise kind(
                f"transaction {transaction_id} of {self.name} takes no rows: its state is {state}, somebody has ended it"
            )
        database = self._database(self.client.server())
        published = [table["name"] for table in database["tables"] if table["is_published"]]
        if database["is_published"] or published:
            raise SkymillError(
                f"the tables {', '.join(published)} of the Qserv database {self.name} are or were published; rows could not be taken back "
                f"from them: {REMEDY}"
            )
        return True

    def commit(self, transaction_id: str, rows: Mapping[str, int] | None = None) -> None:
        """Make what a transaction has loaded final.

        Parameters
        ----------
        transaction_id : `str`
        rows : `Mapping`, optional
            The rows of each table that it must hold, overlap tables included.

        Raises
        ------
        PoisonedError
            If it holds other rows, or a contribution that is not whole, or the server cannot commit it.
        """
        transaction = self.client.transaction(self.name, transaction_id, contrib=1)
        if transaction["state"] == "STARTED":
            summary = transaction["contrib"]["summary"]
            failed = {
                key: count for key, count in summary["num_files_by_status"].items() if count and key != "FINISHED"
            }
            if failed or summary["num_warnings"] or summary["num_rows"] != summary["num_rows_loaded"]:
                raise PoisonedError(
                    f"transaction {transaction_id} of {self.name}: {failed or 'no'} contributions are not finished, there are "
                    f"{summary['num_warnings']} warnings, {summary['num_rows_loaded']} of {summary['num_rows']} rows are loaded"
                )
            loaded = {name: count for name, count in self._rows_in([summary]).items() if count}
            if rows is not None and loaded != {name: count for name, count in rows.items() if count}:
                raise PoisonedError(
                    f"transaction {transaction_id} of {self.name} holds {loaded}, sent were {dict(rows)}"
                )
        answer = self._end(transaction_id, abort=False)
        if self.options["auto_build_secondary_index"] and not answer.get("secondary-index-build-success", 1):
            raise SkymillError(
                f"transaction {transaction_id} of {self.name} is committed, but its director index was not built; run again to go on, and "
                "have it rebuilt when all is published (POST /ingest/index/secondary with rebuild: 1)"
            )

    def abort(self, transaction_id: str) -> None:
        self._end(transaction_id, abort=True)

    def _end(self, transaction_id: str, abort: bool) -> dict:
        """Commit or abort a transaction."""
        goal, allowed = ("ABORTED", ABORTABLE) if abort else ("FINISHED", ("STARTED", "IS_FINISHING"))

        def is_ended(reason: SkymillError | None) -> bool:
            state = self.client.transaction(self.name, transaction_id)["state"]
            if state != goal and state not in allowed:
                text = f"transaction {transaction_id} of {self.name} cannot become {goal}, its state is {state}"
                raise (SkymillError if abort else PoisonedError)(f"{text}: {reason or 'somebody else has ended it'}")
            return state == goal

        path = f"/ingest/trans/{transaction_id}"
        call = functools.partial(self.client.call, "PUT", path, query={"abort": int(abort)}, timeout_s=LONG_S)
        return self._insist(is_ended, call, (QservRefusal, QservNoAnswer))

    def _insist(
        self, is_done: Callable[[SkymillError | None], bool], call: Callable[[], dict], errors: tuple[type, ...]
    ) -> dict:
        """Look, call, and after certain errors look and call again; returns the answer, if there was any."""
        reason, deadline = None, math.inf
        for delay in growing_delays():
            if is_done(reason):
                break
            if reason:
                if time.monotonic() > deadline or (isinstance(reason, QservRefusal) and reason.is_for_key):
                    raise reason
                log.warning("%s; trying again in %.1f s", reason, delay)
                time.sleep(delay)
            try:
                return call()
            except errors as error:
                # The call may have taken hours: what counts is the time since it first failed.
                deadline = deadline if reason else time.monotonic() + self.client.patience_s
                reason = error
        return {}

    # -- publishing -------------------------------------------------------------------------------------------------

    def publish(self, transaction_ids: list[str]) -> dict:
        for transaction in self.client.transactions(self.name):
            transaction_id, state = str(transaction["id"]), transaction["state"]
            if state != "ABORTED" and not (state == "FINISHED" and transaction_id in transaction_ids):
                raise SkymillError(
                    f"the Qserv database {self.name} cannot be published: its transaction {transaction_id} ({state}) was not committed by "
                    f"this workflow; abort it if it is open, else {REMEDY}"
                )

        def is_published(reason: SkymillError | None) -> bool:
            return self._database(self.client.server())["is_published"]

        path = f"/ingest/database/{self.name}"
        call = functools.partial(self.client.call, "PUT", path, timeout_s=LONG_S)
        self._insist(is_published, call, (QservNoAnswer,))
        counting = {"row_counters_state_update_policy": "ENABLED", "row_counters_deploy_at_qserv": 1, "force_rescan": 1}
        for table in self._tables() if self.options["row_counters"] else ():
            body = {"database": self.name, "table": table.name, **counting}
            self.client.call("POST", "/ingest/table-stats", body, timeout_s=LONG_S, repeat=True)
        for index in index_configs(self.dataset):
            kind = self.dataset.tables[index["table"]].kind
            for overlap in (0,) if kind == "regular" else (0, 1):
                # A row is in an overlap table once for each sub-chunk: nothing is unique there.
                body = {**index, **({"spec": "DEFAULT"} if overlap else {}), "overlap": overlap}
                self.client.call("POST", "/replication/sql/index", body, timeout_s=LONG_S, repeat=True)
        return {"database": self.name, "absolute": None, "rows": self.count_rows()}

    def count_rows(self) -> dict[str, int]:
        counts = {
            name: 0
            for table in self._tables()
            for name in (table.name, *([table.overlap_name] if table.kind == "director" else []))
        }
        if not self.options["row_counters"]:
            finished = self.client.transactions(self.name, contrib=1, trans_state="FINISHED")
            return counts | self._rows_in([transaction["contrib"]["summary"] for transaction in finished])
        for table in self._tables():
            for entry in self.client.call("GET", f"/ingest/table-stats/{self.name}/{table.name}")["entries"]:
                name = table.overlap_name if entry["is_overlap"] and table.kind != "regular" else table.name
                if name in counts or entry["num_rows"]:
                    counts[name] = counts.get(name, 0) + entry["num_rows"]
        return counts

    def _rows_in(self, summaries: Sequence[Mapping]) -> dict[str, int]:
        """Rows of each table, overlap tables included, by summaries of contributions."""
        rows: collections.Counter[str] = collections.Counter()
        for summary in summaries:
            for name, counts in summary["table"].items():
                table = self.dataset.tables[name]
                # Each worker has a regular table whole.
                rows[name] += counts["num_rows_loaded"] // max(counts["num_files"] if table.kind == "regular" else 1, 1)
                if "overlap" in counts:
                    rows[table.overlap_name] += counts["overlap"]["num_rows_loaded"]
        return dict(rows)

    # -- questions --------------------------------------------------------------------------------------------------

    def check(self) -> list[tuple[str, bool, str]]:
        once = copy.copy(self)
        once.client = copy.copy(self.client)
        once.client.patience_s = 0.0
        questions: dict[str, Callable[[], str]] = {
            "the controller answers": lambda: f"{once.client.url}, version {once.client.check_version()}",
            **{f"{key} is accepted": functools.partial(once._check_key, key) for key in self.client.key_names},
            "the workers answer": once._check_workers,
            f"the database {self.name} fits": once._check_database,
        }
        answers = []
        for question, answer in questions.items():
            try:
                answers.append((question, True, answer()))
            except SkymillError as error:
                answers.append((question, False, str(error)))
        return answers

    def _check_key(self, key: str) -> str:
        try:
            # It does not say which chunk: who has the right key is refused for that.
            self.client.call("POST", "/ingest/chunk", {"database": self.name}, key=key)
        except QservRefusal as error:
            if error.is_for_key:
                raise
        return "yes"

    def _check_workers(self) -> str:
        workers = _workers(self.client.server())
        if not workers:
            raise SkymillError("no worker is enabled and writable; see the configuration of Qserv's replication system")
        for url in workers.values():
            self.client.call("GET", "/meta/version", url=url)
        return ", ".join(f"{name} at {url}" for name, url in workers.items())

    def _check_database(self) -> str:
        server = self.client.server()
        self._refuse_misfits(server)
        found = self._database(server)
        if found is None:
            return "it is not there yet"
        states = collections.Counter(transaction["state"] for transaction in self.client.transactions(self.name))
        listed = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
        return f"{'published' if found['is_published'] else 'not published'}, {len(found['tables'])} tables, transactions: {listed}"

    def _database(self, server: Mapping) -> Mapping | None:
        return next((database for database in server["databases"] if database["database"] == self.name), None)

    def _tables(self) -> list[Table]:
        """The tables that are loaded, in the order in which Qserv must get to know them."""
        tables = [*self.dataset.tables_of("director", "child"), *self.dataset.tables_of("regular")]
        return [table for table in tables if table.ingest]


def _workers(server: Mapping) -> dict[str, str]:
    """Names and addresses of the workers that can be loaded."""
    able = [worker for worker in server["workers"] if worker["is-enabled"] and not worker["is-read-only"]]
    places = [(w["name"], w["http-loader-host"], w["http-loader-port"]) for w in able]
    return dict(
        address({"worker": name, "http_host": host["addr"], "http_host_name": host["name"], "http_port": port})
        for name, host, port in places
    )


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


def _read_key(name: str, source: Mapping | None, folder: Path) -> str | None:
    """A key from the environment or a file; it must never get into a message."""
    if source is None:
        return None
    if "env" in source:
        if source["env"] not in os.environ:
            raise SkymillError(f"ingest.qserv.{name}.env: the environment variable {source['env']} is not set")
        return os.environ[source["env"]]
    try:
        return (folder / source["file"]).read_text("utf-8").strip()
    except OSError as error:
        raise SkymillError(
            f"ingest.qserv.{name}.file: cannot read {folder / source['file']}: {error.strerror}"
        ) from None
