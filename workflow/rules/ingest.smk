"""Loads into the store: registers the database, starts transactions, loads tiles, commits, publishes.

Reads partitioned/<txn>/<tile>/; makes ingest/: database.json, transactions/, sentinels and manifests of the tiles, published.json.
"""

if missing("ingest/database.json"):

    rule register_database:
        input:
            plan=ancient("<results>/ingest/plan_0.json"),
            configs=ancient(expand("<results>/configs/{name}", name=CONFIGS)),
        output:
            "<results>/ingest/database.json",
        log:
            "<results>/logs/register_database.log",
        priority: 100
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "registering the database"
        script:
            "../../scripts/register_database.py"


rule abort_transaction:
    input:
        poisoned=ancient("<results>/ingest/transactions/{txn}.{attempt}.poisoned.json"),
    output:
        "<results>/ingest/transactions/{txn}.aborted.{attempt}.json",
    log:
        "<results>/logs/abort_transaction/{txn}.{attempt}.log",
    priority: 100
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "aborting transaction {wildcards.txn}, which cannot be trusted"
    script:
        "../../scripts/abort_transaction.py"


rule start_transaction:
    input:
        aborted=aborted_before,
        plan=plan_of,
        database=ancient("<results>/ingest/database.json"),
    output:
        "<results>/ingest/transactions/{txn}.{attempt}.started.json",
    log:
        "<results>/logs/start_transaction/{txn}.{attempt}.log",
    priority: 100
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "starting transaction {wildcards.txn}"
    script:
        "../../scripts/start_transaction.py"


rule ingest_tile:
    input:
        started=started,
        bulk="<results>/partitioned/{txn}/{tile}",
        manifest="<results>/partitioned/{txn}/{tile}.json",
    output:
        manifest="<results>/ingest/{txn}/{tile}.json",
    log:
        "<results>/logs/ingest_tile/{txn}/{tile}.log",
    benchmark:
        "<results>/benchmarks/ingest_tile/{txn}/{tile}.tsv"
    priority: 20
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=RESOURCES.mem_mb,
        runtime=RESOURCES.runtime("ingest"),
        chunks=missing_chunks,
    params:
        **COMMON,
        lock=lock_of,
    message:
        "loading tile {wildcards.tile} of {wildcards.txn}, missing chunks: {resources.chunks}"
    script:
        "../../scripts/ingest_tile.py"


rule ingest_regular:
    input:
        started=started,
        tables=expand("<results>/visits/{name}.csv", name=LOADED_REGULAR),
    output:
        "<results>/ingest/{txn}/regular.json",
    log:
        "<results>/logs/ingest_regular/{txn}.log",
    benchmark:
        "<results>/benchmarks/ingest_regular/{txn}.tsv"
    priority: 20
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
        lock=lock_of,
    message:
        "loading the regular tables"
    script:
        "../../scripts/ingest_regular.py"


rule commit_transaction:
    input:
        started=started,
        tiles=manifests,
    output:
        "<results>/ingest/transactions/{txn}.committed.json",
    log:
        "<results>/logs/commit_transaction/{txn}.log",
    priority: 50
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "committing transaction {wildcards.txn}"
    script:
        "../../scripts/commit_transaction.py"


if LOADS and STATE.needs_publish():

    rule publish_database:
        input:
            committed=FINISHED,
        output:
            # One record each time, so that what has to be published again is always missing; published.json is the last of them.
            "<results>/ingest/publications/{number}.json",
        log:
            "<results>/logs/publish_database/{number}.log",
        benchmark:
            "<results>/benchmarks/publish_database/{number}.tsv"
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "publishing the database"
        script:
            "../../scripts/publish_database.py"


rule load:
    input:
        tiles=lambda wildcards: only_targets(),
    log:
        "<results>/logs/load.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "looking whether the chunks that were asked for are loaded"
    script:
        "../../scripts/check_loaded.py"


rule check_ingest:
    log:
        "<results>/logs/check_ingest.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "asking the store whether it can be used"
    script:
        "../../scripts/check_ingest.py"
