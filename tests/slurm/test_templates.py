"""The job scripts without a cluster: what they ask Slurm for, and what they then run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.slurm.conftest import Clone

SLURM = Path(__file__).parents[2] / "slurm"
LONG = ("--time=01:00:00", "--signal=B:USR2@120", "--requeue")
ONE = ("--nodes=1", "--ntasks=1")
EACH = ("--ntasks-per-node=1", "--cpus-per-task=2")
# Requests of each template to Slurm.
REQUESTS = {
    "baseline": ["--job-name=baseline", *ONE, "--cpus-per-task=4", *LONG],
    "bench": ["--job-name=bench", *ONE, "--exclusive", "--time=02:00:00"],
    "mirrored": ["--job-name=mirrored", *ONE, "--cpus-per-task=4", *LONG],
    "mpi_4nodes": ["--job-name=mpi", "--nodes=4", *EACH, *LONG],
    "prepare_data": ["--job-name=prepare_data", *ONE, "--cpus-per-task=1", "--time=00:15:00"],
    "process": ["--job-name=process", *ONE, "--cpus-per-task=4", *LONG],
    "ranks": ["--job-name=ranks", "--nodes=2", *EACH, *LONG],
    "report": ["--job-name=report", *ONE, "--cpus-per-task=1", "--time=00:10:00"],
}
SRUN = "srun --kill-on-bad-exit=0 --wait=5 --export=ALL"
# Command of each template and words as job 7.
COMMANDS = {
    ("baseline", ""): "python jobs/baseline.py --out results/baseline-7 --seed 3",
    ("bench", ""): "python jobs/bench.py --out results/bench-7 --seed 3",
    ("mirrored", ""): "python jobs/mirrored.py --out results/mirrored-7 --seed 3",
    ("mpi_4nodes", ""): f"{SRUN} python jobs/mpi.py --out results/mpi-7 --seed 3",
    ("prepare_data", ""): "python jobs/prepare_data.py --seed 3",
    ("process", "custom"): "python jobs/custom.py --out results/custom-7 --seed 3",
    ("process", "custom_dataset"): "python jobs/custom_dataset.py --out results/custom_dataset-7 --seed 3",
    ("process", "tpu"): "python jobs/tpu.py --out results/tpu-7 --seed 3",
    ("ranks", "bench_step"): f"{SRUN} python jobs/bench_step.py --out results/bench_step-7 --seed 3",
    ("ranks", "ddp"): f"{SRUN} python jobs/ddp.py --out results/ddp-7 --seed 3",
    ("ranks", "federated"): f"{SRUN} python jobs/federated.py --out results/federated-7 --seed 3",
    ("ranks", "multiworker"): f"{SRUN} python jobs/multiworker.py --out results/multiworker-7 --seed 3",
    ("ranks", "pipeline"): f"{SRUN} python jobs/pipeline.py --out results/pipeline-7 --seed 3",
    ("ranks", "plan"): f"{SRUN} python jobs/plan.py --out results/plan-7 --seed 3",
    ("ranks", "scaling"): f"{SRUN} python jobs/scaling.py --out results/scaling-7 --seed 3",
    ("report", ""): "python jobs/report.py --seed 3",
}
REPLACED = {
    "custom": "sbatch slurm/process.sh custom --devices 2",
    "federated": "sbatch --nodes=4 slurm/ranks.sh federated --devices 2",
    "multiworker_4nodes": "sbatch --nodes=4 slurm/ranks.sh multiworker --devices 2",
    "pipeline_2nodes": "sbatch slurm/ranks.sh pipeline --devices 2",
    "plan_2nodes": "sbatch --exclusive --time=00:15:00 slurm/ranks.sh plan --devices 2",
}
# Stand-in for python and srun: prints how it was called, and ends with the code that the test wants. The
# interpreter is also called with -c, to see that it works, and with -m about a command without a script.
STAND_IN = """#!/bin/bash
[ "$1" = -c ] && exit
[ "$1" = -m ] && exec "$PYTHON" "$@"
echo "${0##*/} $*"
echo "locking=$HDF5_USE_FILE_LOCKING cpus=$SRUN_CPUS_PER_TASK"
exit "$JOB_ENDS_WITH"
"""
# Slurm as it is when the job runs; requeue refuses, so that the script goes on.
SQUEUE = "#!/bin/bash\necho ${JOB_STATE:-RUNNING}\n"
SCONTROL = '#!/bin/bash\necho "scontrol $*"\nexit 1\n'


def start(
    clone: Clone, template: str, *flags: str, ends_with: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Runs a template as job 7 would, output as Slurm keeps it, with stand-ins for python and srun."""
    tools = clone.root / ".venv" / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    for name, text in (("python", STAND_IN), ("srun", STAND_IN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "mpi",
        "SLURM_CPUS_PER_TASK": "2",
        "JOB_ENDS_WITH": str(ends_with),
    }
    words = ["bash", f"slurm/{template}.sh", *flags]
    with open(clone.root / "slurm-7.out", "w") as output:
        return subprocess.run(
            words,
            cwd=clone.root,
            env={**os.environ, **job, **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def test_every_template_is_tested() -> None:
    scripts = {path.stem for path in SLURM.glob("*.sh")} - {"env", "local_cluster", "scaling"} - set(REPLACED)
    assert scripts == set(REQUESTS) == {template for template, _ in COMMANDS}


@pytest.mark.parametrize("template", REQUESTS)
def test_asks_slurm_for(template: str) -> None:
    lines = (SLURM / f"{template}.sh").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert asked == REQUESTS[template]
    # sbatch reads no #SBATCH line behind the first command.
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(not line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.launches
@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sh")), ids=lambda path: path.name)
def test_is_valid_bash_and_names_no_mpi_type(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    code = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in code if "--mpi" in line]


@pytest.mark.launches
@pytest.mark.parametrize(("template", "name"), COMMANDS)
def test_runs(template: str, name: str, make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    assert start(clone, template, *name.split(), "--seed", "3", ends_with=5).returncode == 5
    ran, environment = clone.log(7).splitlines()
    assert ran == COMMANDS[template, name]
    assert environment == "locking=FALSE cpus=2"
    script = next(word for word in shlex.split(ran) if word.startswith("jobs/"))
    assert (clone.root / script).is_file()


@pytest.mark.launches
def test_a_general_template_is_named_after_its_command(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    start(clone, "ranks", "pipeline", SLURM_JOB_NAME="ranks")
    assert [path.name for path in clone.root.glob("logs/*")] == ["pipeline-7.out"]
    start(clone, "ranks", "pipeline", SLURM_JOB_NAME="mine")
    assert sorted(path.name for path in clone.root.glob("logs/*")) == ["mine-7.out", "pipeline-7.out"]


@pytest.mark.launches
def test_an_unknown_command_is_one_message(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    environ = {"PYTHON": sys.executable, "PYTHONPATH": str(SLURM.parent)}
    assert start(clone, "ranks", "pipelin", "--seed", "3", **environ).returncode == 2
    assert clone.log(7).splitlines() == [
        "error: expected a command. Got: pipelin. Did you mean pipeline?",
        "  Fix: python -m mpi_train --help",
    ]


@pytest.mark.launches
@pytest.mark.parametrize("name", REPLACED)
def test_an_old_name_says_the_new_line(name: str) -> None:
    done = subprocess.run(["bash", SLURM / f"{name}.sh", "--devices", "2"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    general = REPLACED[name].split("slurm/")[1].split()[0]
    assert done.stderr == f"error: slurm/{name}.sh is now slurm/{general}\n  Fix: {REPLACED[name]}\n"


@pytest.mark.launches
@pytest.mark.parametrize(("template", "name"), [("ranks", "plan"), ("bench", "")])
def test_a_measurement_is_not_requeued(template: str, name: str, make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    assert start(clone, template, *name.split(), ends_with=6, SLURM_RESTART_COUNT="1").returncode == 6
    assert "queued again" not in clone.log(7)
    assert "--resume" not in clone.log(7)


@pytest.mark.launches
def test_a_rank_killed_by_a_signal_is_a_lost_rank(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    assert start(clone, "mpi_4nodes", ends_with=128 + 9).returncode == 6
    assert "error: a rank was lost" in clone.log(7)


@pytest.mark.launches
@pytest.mark.parametrize(
    "words", [["baseline"], ["process", "custom"], ["mirrored"], ["mpi_4nodes"], ["ranks", "federated"]]
)
def test_queued_again_it_goes_on_whatever_it_was_told(
    words: list[str], make_clone: Callable[[], Clone]
) -> None:
    clone = make_clone()
    start(clone, *words, "--resume", "never", SLURM_RESTART_COUNT="1")
    ran = clone.log(7).splitlines()[0]
    assert ran.endswith("--resume never --resume auto")


# Runs what it is given in no image, and says how it was called.
APPTAINER = """#!/bin/bash
[[ "$*" = *" -c "* ]] && exit
echo "apptainer $*"
"""


@pytest.mark.launches
@pytest.mark.parametrize("template", ["baseline", "bench"])
def test_an_image_takes_the_place_of_the_environment(template: str, make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    tools = clone.root / "site"
    tools.mkdir()
    (tools / "apptainer").write_text(APPTAINER)
    (tools / "apptainer").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    assert start(clone, template, CONTAINER="env.sif", PATH=path).returncode == 0
    words = (
        f"apptainer exec --bind {clone.root} --env PYTHONPATH={clone.root} env.sif python jobs/{template}.py"
    )
    assert clone.log(7).startswith(words)


@pytest.mark.launches
def test_an_image_that_nothing_runs_is_one_message(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    assert start(clone, "baseline", CONTAINER="env.sif", PATH="/usr/bin:/bin").returncode == 4
    errors = [line for line in clone.log(7).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Got: CONTAINER=env.sif" in errors[0]


@pytest.mark.launches
def test_stages_the_shards_that_its_flags_name(make_clone: Callable[[], Clone], tmp_path: Path) -> None:
    clone = make_clone()
    (clone.root / "shards").mkdir()
    (clone.root / "shards/manifest.json").touch()
    place = {"STAGE_TO": str(tmp_path / "own"), "SLURM_JOB_NUM_NODES": "3"}
    start(clone, "mpi_4nodes", "--dataset", "synthetic", "--data=shards", **place)
    copied, _, ran, _, removed, _ = clone.log(7).splitlines()
    each = "srun --ntasks=3 --ntasks-per-node=1 --export=ALL"
    assert copied.startswith(f"{each} bash -c ")
    own = f"{place['STAGE_TO']}/mpi-train-7"
    assert copied.endswith(f" - shards {own}")
    assert ran.endswith(f"--data=shards --data {own}")
    assert removed == f"srun --ntasks=3 --ntasks-per-node=1 rm -rf {own}"


@pytest.mark.launches
def test_without_shards_the_job_itself_says_so(make_clone: Callable[[], Clone], tmp_path: Path) -> None:
    clone = make_clone()
    start(clone, "baseline", STAGE_TO=str(tmp_path / "own"), SLURM_JOB_NUM_NODES="1")
    assert clone.log(7).splitlines()[0] == "python jobs/baseline.py --out results/baseline-7"


@pytest.mark.launches
@pytest.mark.parametrize(
    ("code", "environ", "expected"),
    [
        (75, {}, "scontrol requeue 7"),
        (75, {"SLURM_RESTART_COUNT": "100"}, "not queued again: requeued 100 times already"),
        (75, {"JOB_STATE": "COMPLETING"}, "not queued again: the job is COMPLETING"),
        (6, {"SLURM_RESTART_COUNT": "50"}, "scontrol requeue 7"),  # no loss among them
        (6, {"RESTARTS_AFTER_LOSS": "0"}, "not queued again: requeued 0 times already"),
        (15, {}, "scontrol requeue 7"),  # the MPI library's own, when it cannot start
    ],
)
def test_what_is_queued_again(
    code: int, environ: dict[str, str], expected: str, make_clone: Callable[[], Clone]
) -> None:
    clone = make_clone()
    assert start(clone, "mpi_4nodes", ends_with=code, **environ).returncode == (6 if code == 15 else code)
    assert expected in clone.log(7)
    assert not list(clone.root.glob("logs/.losses*"))


@pytest.mark.launches
def test_moves_its_log_and_keeps_it_when_requeued(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    start(clone, "mpi_4nodes", "--seed", "1")
    start(clone, "mpi_4nodes", "--seed", "2")
    assert [path.name for path in clone.root.glob("*.out")] == []
    assert [path.name for path in clone.root.glob("logs/*")] == ["mpi-7.out"]
    ran = [line for line in clone.log(7).splitlines() if line.startswith("srun")]
    assert [line[-1] for line in ran] == ["1", "2"]


@pytest.mark.launches
def test_outside_of_slurm_it_says_sbatch(make_clone: Callable[[], Clone]) -> None:
    clone = make_clone()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    words = ["bash", "slurm/mpi_4nodes.sh"]
    done = subprocess.run(words, cwd=clone.root, env=environ, capture_output=True, text=True)
    assert done.returncode == 4
    assert "Fix: sbatch slurm/mpi_4nodes.sh" in done.stderr


@pytest.mark.launches
@pytest.mark.parametrize("cluster", ["", ";alpha"])
def test_scaling_submits_a_job_for_each_size_and_then_the_report(
    cluster: str, make_clone: Callable[[], Clone], tmp_path: Path
) -> None:
    """On a site with several clusters, sbatch adds the name of the cluster to the number."""
    clone = make_clone()
    done = scale(clone, tmp_path, f'echo "$*" >>submitted\necho "$(wc -l <submitted){cluster}"\n')
    assert (done.returncode, done.stderr) == (0, "")
    mpi = "--cpus-per-task=4 --job-name=mpi-{0} slurm/mpi_4nodes.sh --out r/s/mpi-{0} --seed 3"
    assert (clone.root / "submitted").read_text().splitlines() == [
        "--parsable slurm/baseline.sh --out r/s/baseline --seed 3",
        "--parsable --nodes=1 " + mpi.format(1),
        "--parsable --nodes=8 " + mpi.format(8),
        "--parsable --dependency=afterany:1:2:3 slurm/report.sh r/s",
    ]
    assert done.stdout.splitlines()[-1] == "report: job 4, r/s/report.md"


@pytest.mark.launches
def test_scaling_ends_when_sbatch_refuses(make_clone: Callable[[], Clone], tmp_path: Path) -> None:
    clone = make_clone()
    done = scale(clone, tmp_path, "echo tried >>submitted\necho no >&2\nexit 1\n")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "no\n")
    assert (clone.root / "submitted").read_text() == "tried\n"


def scale(clone: Clone, tmp_path: Path, sbatch: str) -> subprocess.CompletedProcess[str]:
    """Run slurm/scaling.sh with a stand-in for sbatch."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(f"#!/bin/bash\n{sbatch}")
    (tmp_path / "bin/sbatch").chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "NODES": "1 8", "OUT": "r/s"}
    words = ["bash", "slurm/scaling.sh", "--seed", "3"]
    return subprocess.run(words, cwd=clone.root, env=environ, capture_output=True, text=True)


def local_cluster(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Calls the script as an ordinary user, whoever runs the tests."""
    (tmp_path / "id").write_text('#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo student\n')
    (tmp_path / "id").chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOCAL_CLUSTER_DIR": str(tmp_path / "cluster"),
    }
    return subprocess.run([SLURM / "local_cluster.sh", *words], env=environ, capture_output=True, text=True)


@pytest.mark.launches
@pytest.mark.parametrize(
    "words", [[], ["sideways"], ["exec", "n1"], ["kill"], ["down", "n1"], ["rate", "1gbit", "n1"]]
)
def test_local_cluster_shows_its_usage(words: list[str], tmp_path: Path) -> None:
    done = local_cluster(tmp_path, *words)
    assert done.returncode == 2
    assert "slurm/local_cluster.sh up [N]" in done.stderr


@pytest.mark.launches
def test_local_cluster_that_is_down_has_no_rate(tmp_path: Path) -> None:
    done = local_cluster(tmp_path, "rate")
    assert (done.returncode, done.stdout) == (4, "")
    assert "expected a cluster that is up. Got: none" in done.stderr


@pytest.mark.launches
def test_local_cluster_asks_for_root(tmp_path: Path) -> None:
    done = local_cluster(tmp_path, "up", "2")
    assert done.returncode == 4
    assert done.stderr == ("error: expected root. Got: student\n  Fix: sudo slurm/local_cluster.sh up 2\n")
    assert not (tmp_path / "cluster").exists()
