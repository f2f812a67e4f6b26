"""With a scratch disk: a tile from its generation to its loading in one job, since the bulk files may be on one node only.

Reads what generate_tile reads, and the started transaction; makes ingest/<txn>/<tile>.json and the sentinels, as ingest_tile does.
"""

if "scratch" in config:

    ruleorder: make_tile > ingest_tile

    rule make_tile:
        input:
            started=started,
            plan=plan_of,
            visits=ancient(expand("<results>/visits/{name}.npz", name=REGULAR)),
            maps=ancient(expand("<results>/density/{name}.npy", name=MAPS)),
        output:
            manifest="<results>/ingest/{txn}/{tile}.json",
        log:
            "<results>/logs/make_tile/{txn}/{tile}.log",
        benchmark:
            "<results>/benchmarks/make_tile/{txn}/{tile}.tsv"
        priority: 20
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            mem_mb=RESOURCES.mem_mb,
            runtime=RESOURCES.runtime("generate", "partition", "ingest"),
            chunks=missing_chunks,
        params:
            **COMMON,
            lock=lock_of,
        message:
            "making and loading tile {wildcards.tile} of {wildcards.txn}, missing chunks: {resources.chunks}"
        script:
            "../../scripts/make_tile.py"
