# Runs every notebook of a profile, and none twice: papermill injects the parameters, nbconvert makes the page,
# the report gathers the records.
#   snakemake --cores 2 --config profile=smoke [processes=4] [gpus=4]         (make reproduce does this)
# With several processes, the runs marked `distributed` are data-parallel: torchrun runs the notebook as a script first,
# the notebook then finds the finished run.
import os, re, shlex, subprocess, sys, tempfile
from pathlib import Path
import yaml
from thesis_lib.core import DataError, data_root
from thesis_lib.workflow import failures, gpu_ids, read_profile

PROFILE = config.get("profile", "smoke")
JOBS = {job.folder: job for job in read_profile(PROFILE)[1]}
if {"mini", "mocap", "cxr"} & {job.params.get("dataset") for job in JOBS.values()}:
    data_root() # says what is missing before a committed record gives way to its run
RUN = "outputs/%s/{experiment}/{run}" % PROFILE

# A login node sees no GPU: gpus=<number in a node>. On this machine, no more are in use at once than it has.
PROCESSES, GPUS = int(config.get("processes", 1)), int(config.get("gpus", len(gpu_ids())))
if 0 < GPUS < PROCESSES:
    raise DataError(f"processes={PROCESSES}: each needs a GPU of its own, there are {GPUS}")
if workflow.nodes is None and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)

def files(pattern): return [pattern.format(f=f) for f in glob_wildcards(pattern.replace("{f}", "{f,.+}")).f]
MODULES = [f for f in files("thesis_lib/{f}.py") if not f.endswith("_modidx.py")]
REPORT = [f for f in MODULES if f.startswith("thesis_lib/report/")]
LIBRARY = [f for f in MODULES if not f.startswith(("thesis_lib/report/", "thesis_lib/workflow/"))]
TEMPLATES = [f for f in files("templates/{f}") if not f.endswith(".md.j2")]
TABLES = [*REPORT, *files("data/published/{f}.csv"), *files("templates/table{f}")]

# Both run a module; the second forks a process that has imported the libraries, and is there sooner.
PYTHON = f"{shlex.quote(sys.executable)} -m"
WARM = f"{shlex.quote(sys.executable)} -P thesis_lib/workflow/forkserver.py"
os.environ.update(THESIS_BATCH="1", CUBLAS_WORKSPACE_CONFIG=":4096:8", PYTHONHASHSEED="0")
# Runs go side by side: one core each.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
# glibc keeps freed memory: see nbs/benchmarks/malloc.ipynb
os.environ.update(MALLOC_MMAP_THRESHOLD_="1073741824", MALLOC_TRIM_THRESHOLD_="4294967296")

def job(wildcards): return JOBS[f"{wildcards.experiment}/{wildcards.run}"]
def processes(wildcards): return PROCESSES if job(wildcards).distributed else 1
def records(wildcards):
    return [f"outputs/{PROFILE}/{f}/record.json" for f, j in JOBS.items() if j.experiment in job(wildcards).after]
def tables(wildcards): # of notebooks that use the report: not of a training
    return TABLES if re.search(r"thesis_lib\b.*\breport\b", Path(job(wildcards).notebook).read_text()) else []
def cores_of(wildcards): return workflow.cores if job(wildcards).alone and workflow.local_exec else processes(wildcards)

FIRST = sorted({e for j in JOBS.values() if j.gpu for e in j.after}) # trainings wait for these
wildcard_constraints: experiment=r"[\w/]+", run=r"[\w.-]+"

onstart: # runs are forks of one process: see nbs/workflow/02_forkserver.ipynb; elsewhere, a fork without exec may abort
    if workflow.local_exec and sys.platform == "linux" and "THESIS_WARM" not in os.environ:
        warm = os.environ["THESIS_WARM"] = tempfile.mkdtemp(prefix="warm-")
        kernels = [warm, *filter(None, [os.environ.get("JUPYTER_PATH")])] # its kernel is found first
        os.environ["JUPYTER_PATH"] = os.pathsep.join(kernels)
        end, _ = os.pipe() # its other end stays open for as long as Snakemake lives
        server = [sys.executable, "-P", "thesis_lib/workflow/forkserver.py", "serve", warm]
        log = open(".snakemake/forkserver.log", "w")
        subprocess.Popen(server, stdin=end, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

onerror: print("", *failures(PROFILE), sep="\n", file=sys.stderr)

rule index:
    input:
        records=[f"outputs/{PROFILE}/{f}/record.json" for f in JOBS],
        notebooks=[f"outputs/{PROFILE}/{f}/report.ipynb" for f in JOBS],
        profile=f"profiles/{PROFILE}.yaml", library=REPORT, templates=TEMPLATES
    output: f"outputs/{PROFILE}/index.html", pages=[f"outputs/{PROFILE}/{f}/report.html" for f in JOBS]
    localrule: True
    shell: "{WARM} thesis_lib.report html {input.notebooks:q} && {WARM} thesis_lib.report index outputs/{PROFILE}"

rule experiment: # papermill writes run.ipynb, which stays if the run fails
    input: notebook=lambda w: job(w).notebook, library=LIBRARY, tables=tables, records=records
    output: record=RUN + "/record.json", notebook=RUN + "/report.ipynb"
    params:
        folder=RUN, yaml=lambda w: yaml.safe_dump(job(w).params), cwd=lambda w: os.path.dirname(job(w).notebook),
        processes=processes
    log: RUN + "/run.log"
    threads: cores_of
    resources: gpu=lambda w: min(processes(w), GPUS) if job(w).gpu else 0
    shell: r"""
        on_gpus() {{
            if [ {resources.gpu} = 0 ]; then "$@"; else {WARM} thesis_lib.workflow gpus {resources.gpu} -- "$@"; fi
        }}
        exec > {log} 2>&1
        if [ {params.processes} != 1 ]; then
            {WARM} papermill {input.notebook} {params.folder}/train.ipynb --prepare-only -y {params.yaml:q}
            {WARM} nbconvert --to python {params.folder}/train.ipynb
            on_gpus {PYTHON} torch.distributed.run --nproc-per-node {params.processes} --standalone \
                {params.folder}/train.py
        fi
        on_gpus {WARM} papermill {input.notebook} {params.folder}/run.ipynb --cwd {params.cwd} -k python3 \
            -y {params.yaml:q} --log-output --no-progress-bar
        mv {params.folder}/run.ipynb {output.notebook}
        """

use rule experiment as experiment_first with:
    wildcard_constraints: experiment="|".join(FIRST)
    priority: 1

ruleorder: experiment_first > experiment
