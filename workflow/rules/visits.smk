"""What all tiles need, once for the whole sky: regular tables (the visits among them) and density maps.

Makes visits/<Table>.csv and .npz, and density/<Table>.npy. What is there already is final.
"""

if missing(*(f"visits/{name}.npz" for name in REGULAR)):

    rule make_regular:
        output:
            csv="<results>/visits/{table}.csv",
            arrays="<results>/visits/{table}.npz",
        log:
            "<results>/logs/make_regular/{table}.log",
        benchmark:
            "<results>/benchmarks/make_regular/{table}.tsv"
        priority: 90
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "making {wildcards.table} for the whole sky"
        script:
            "../../scripts/make_regular.py"


if missing(*(f"density/{name}.npy" for name in MAPS)):

    rule convert_density:
        output:
            "<results>/density/{table}.npy",
        log:
            "<results>/logs/convert_density/{table}.log",
        priority: 90
        localrule: True
        conda:
            "../../environment.yml"
        params:
            **COMMON,
        message:
            "reading the density map of {wildcards.table}"
        script:
            "../../scripts/convert_density.py"
