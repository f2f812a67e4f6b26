"""Partitions a tile: chunk files of each table, and overlap files of each director.

Reads generated/<txn>/<tile>/ and its manifest; makes partitioned/<txn>/<tile>/ and its manifest beside it. Without a store also
partitioned/<txn>.json when all of a transaction is partitioned. Of partitioned files that stay, configs/ingest/metadata.json.
"""


rule partition_tile:
    input:
        bulk="<results>/generated/{txn}/{tile}",
        manifest="<results>/generated/{txn}/{tile}.json",
    output:
        bulk=bulk("<results>/partitioned/{txn}/{tile}", KEEPS_PARTITIONED),
        manifest="<results>/partitioned/{txn}/{tile}.json",
    log:
        "<results>/logs/partition_tile/{txn}/{tile}.log",
    benchmark:
        "<results>/benchmarks/partition_tile/{txn}/{tile}.tsv"
    priority: 10
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=RESOURCES.mem_mb,
        runtime=RESOURCES.runtime("partition"),
        chunks=missing_chunks,
    params:
        **COMMON,
        lock=lock_of,
    message:
        "partitioning tile {wildcards.tile} of {wildcards.txn}, missing chunks: {resources.chunks}"
    script:
        "../../scripts/partition_tile.py"


if not LOADS:

    rule check_tiles:
        input:
            tiles=manifests,
        output:
            "<results>/partitioned/{txn}.json",
        log:
            "<results>/logs/check_tiles/{txn}.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "looking whether all of {wildcards.txn} is partitioned"
        script:
            "../../scripts/check_tiles.py"


if LISTS_PARTITIONED:

    rule write_metadata:
        input:
            FINISHED,
        output:
            METADATA,
        log:
            "<results>/logs/write_metadata.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "listing the partitioned files for the tool qserv-ingest"
        script:
            "../../scripts/write_metadata.py"
