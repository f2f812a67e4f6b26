"""Says how far all is: prints it, and writes status.json, status.md and files of chunk ids (.clg). Reads records only."""


rule status:
    input:
        lambda wildcards: leave_lock(workflow),
    log:
        "<results>/logs/status.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        **COMMON,
    message:
        "looking how far all is"
    script:
        "../../scripts/show_status.py"
