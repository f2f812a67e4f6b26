"""Says how far all is: prints it, and writes status.json, status.md and files of chunk ids (.clg). Reads records only."""

if workflow.dag_settings and set(workflow.dag_settings.targets) <= {"status", "plan"}:
    # Another driver may be at work. Snakemake would take its lock away together with its own.
    workflow.execution_settings.lock = False


rule status:
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
