"""Generates a tile: CSV files of each chunk and table, and the halo of each director.

Reads the plan, the visits and the density maps; makes generated/<txn>/<tile>/ and its manifest beside it.
The truth of the tile, <tile>.truth.json.gz, is not declared: what is known of chunks that are loaded must survive when others are made again.
"""


rule generate_tile:
    input:
        plan=plan_of,
        database=lambda wildcards: ancient(
            STATE.registration(wildcards.txn, wildcards.tile)
        ),
        visits=ancient(expand("<results>/visits/{name}.npz", name=REGULAR)),
        maps=ancient(expand("<results>/density/{name}.npy", name=MAPS)),
    output:
        bulk=bulk("<results>/generated/{txn}/{tile}", config["keep"]["generated"]),
        manifest="<results>/generated/{txn}/{tile}.json",
    log:
        "<results>/logs/generate_tile/{txn}/{tile}.log",
    benchmark:
        "<results>/benchmarks/generate_tile/{txn}/{tile}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=RESOURCES.mem_mb,
        runtime=RESOURCES.runtime("generate"),
        chunks=missing_chunks,
    params:
        **COMMON,
        lock=lock_of,
    message:
        "generating tile {wildcards.tile} of {wildcards.txn}, missing chunks: {resources.chunks}"
    script:
        "../../scripts/generate_tile.py"


# Without an output, it runs whenever it is asked for: what is selected may have grown.
rule check_edges:
    input:
        visits=ancient(expand("<results>/visits/{name}.npz", name=REGULAR)),
        maps=ancient(expand("<results>/density/{name}.npy", name=MAPS)),
    log:
        "<results>/logs/check_edges.log",
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "comparing edges that are made alone with those of complete chunks"
    script:
        "../../scripts/check_edges.py"
