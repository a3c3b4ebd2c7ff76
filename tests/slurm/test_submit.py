"""Exact job scripts, and jobs that are followed to their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mpi_train.cluster import queue, submit
from mpi_train.cluster.submit import Resources, compose
from mpi_train.runtime.errors import UsageError
from mpi_train.strategies.registry import STRATEGIES, Strategy

if TYPE_CHECKING:
    from tests.slurm.conftest import Clone

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"
SOURCE = re.findall("^source.*", (SLURM / "mpi_4nodes.sh").read_text(), re.MULTILINE)[0]

# Command and template, resources, flags; #SBATCH lines and last line of the script.
GOLDEN = [
    (
        "mpi",
        "mpi_4nodes",
        Resources(nodes=8, time="00:30:00", partition="long", account="ab-12"),
        ["--epochs", "10", "--model", "my.module:net work"],
        """\
#SBATCH --job-name=mpi
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=00:30:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --partition=long
#SBATCH --account=ab-12
@SOURCE@

ranks mpi --epochs 10 --model 'my.module:net work'\n""",
    ),
    (
        "mpi",
        "mpi_4nodes",
        Resources(nodes=2, ntasks_per_node=4, cpus_per_task=1, gpus_per_node=4, qos="high"),
        [],
        """\
#SBATCH --job-name=mpi
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --gpus-per-node=4
#SBATCH --qos=high
@SOURCE@

ranks mpi\n""",
    ),
    (
        "bench",
        "bench",
        Resources(time="2-00"),
        ["--repeats", "5"],
        """\
#SBATCH --job-name=bench
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=2-00
@SOURCE@

process bench --repeats 5\n""",
    ),
    (
        "pipeline",
        "ranks",
        Resources(nodes=4),
        ["--stages", "2"],
        """\
#SBATCH --job-name=pipeline
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
@SOURCE@

ranks pipeline --stages 2\n""",
    ),
    (
        "custom",
        "process",
        Resources(gpus_per_node=2),
        [],
        """\
#SBATCH --job-name=custom
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --gpus-per-node=2
@SOURCE@

process custom\n""",
    ),
]
RANKS = {"plan", *(strategy.job for strategy in STRATEGIES.values() if strategy.unit == "rank")}


@pytest.mark.parametrize(("job", "template", "resources", "flags", "expected"), GOLDEN)
def test_the_script_is_exactly(
    job: str, template: str, resources: Resources, flags: list[str], expected: str
) -> None:
    text = (SLURM / f"{template}.sh").read_text()
    script = compose(job, resources, flags, ranks=job in RANKS, folder=SLURM)
    head = text[: text.index("#SBATCH")]
    assert script == head + expected.replace("@SOURCE@", SOURCE)


@pytest.mark.parametrize(
    ("job", "template"), [("baseline", "baseline"), ("mpi", "mpi_4nodes"), ("bench", "bench")]
)
def test_nothing_asked_for_is_the_template_itself(job: str, template: str) -> None:
    text = (SLURM / f"{template}.sh").read_text()
    assert compose(job, Resources(), [], ranks=job in RANKS, folder=SLURM) == text.replace(' "$@"', "")


@pytest.mark.launches
@pytest.mark.parametrize("name", [*STRATEGIES, *submit.OTHERS], ids=lambda name: f"{name}.sh")
def test_everything_can_be_submitted(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    submit.main([name, "--print"])
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    unit = "ranks" if name in RANKS else "process"
    expected = "process baseline --tuned" if name == "tuned" else f"{unit} {name}"
    assert script.splitlines()[-1] == expected


@pytest.mark.mpi_skip
def test_a_strategy_is_submitted_as_soon_as_it_is_registered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(
        STRATEGIES,
        "mine",
        Strategy(name="mine", text="a test", config=STRATEGIES["mpi"].config, train="a.b:c"),
    )
    submit.main(["mine", "--nodes", "3", "--epochs", "7", "--print"])
    script = capsys.readouterr().out
    assert "#SBATCH --job-name=mine\n#SBATCH --nodes=3\n" in script
    assert script.endswith("\nranks mine --epochs 7\n")
    with pytest.raises(UsageError, match=r"--epochs: expected at least 1"):
        submit.main(["mine", "--epochs", "0", "--print"])


def test_a_partition_may_have_the_name_of_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    submit.main(["mpi", "--partition", "bench", "--print"])
    script = capsys.readouterr().out
    assert "#SBATCH --partition=bench\n" in script
    assert script.endswith("\nranks mpi\n")


def test_a_plan_has_its_nodes_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    submit.main(["plan", "--print"])
    script = capsys.readouterr().out
    assert "#SBATCH --exclusive\n" in script
    assert "#SBATCH --time=00:15:00\n" in script


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Did you mean mirrored\?"):
        submit.main(["miror"])
    with pytest.raises(UsageError, match=r"custom is one process\. Got: 2"):
        compose("custom", Resources(nodes=2), [], ranks=False, folder=SLURM)
    with pytest.raises(UsageError, match="--nodes: expected at least 1"):
        Resources(nodes=0)
    with pytest.raises(UsageError, match="--partition: expected a word"):
        Resources(partition="a\n#SBATCH --uid=0")


@pytest.mark.mpi_skip
def test_the_number_of_a_job_on_a_site_with_several_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "41;alpha"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert queue.submit("#!/bin/sh", {"nodes": "2"}) == 41


def test_a_state_in_one_line() -> None:
    assert (
        queue.shown({"JobState": "PENDING", "Reason": "Priority", "NodeList": "(null)"})
        == "PENDING (Priority)"
    )
    assert (
        queue.shown({"JobState": "RUNNING", "NodeList": "n[1-4]", "Restarts": "2"})
        == "RUNNING on n[1-4] restarts 2"
    )


def start(folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/submit.py"), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.launches
def test_prints_without_a_cluster_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = start(ROOT, "mpi", "--nodes", "2", "--epochs", "3", "--print", PATH="/nowhere")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "#SBATCH --nodes=2\n" in printed.stdout
    assert printed.stdout.endswith("\nranks mpi --epochs 3\n")
    missing = start(ROOT, "mpi", PATH="/nowhere")
    assert (missing.returncode, missing.stdout) == (4, "")
    assert missing.stderr.count("error: ") == 1
    assert "expected sbatch. Got: none on this machine" in missing.stderr
    monkeypatch.chdir(ROOT)
    for words, text in (
        (["mpi", "--node", "2", "--print"], "Did you mean --nodes"),
        (["mpi", "--epochs", "0", "--print"], "--epochs: expected at least 1"),
        (["--print"], "required: strategy"),
    ):
        with pytest.raises(UsageError, match=text):
            submit.main(words)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"expected a template in slurm/ranks\.sh"):
        submit.main(["mpi", "--print"])


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_submits_and_follows_a_job_to_its_end(cluster_clone: Clone) -> None:
    small = ["--dataset", "synthetic", "--model", "mlp", "--batch-size", "512", "--epochs", "1"]
    done = start(cluster_clone.root, "mpi", "--nodes", "2", "--wait", *small)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    job_id = re.search(r"job (\d+): mpi", done.stdout)
    assert job_id is not None
    assert f"job {job_id[1]}: COMPLETED" in done.stdout
    assert "  | epoch 1/1 " in done.stdout
    assert (cluster_clone.root / f"results/mpi-{job_id[1]}/run.json").is_file()


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_job_that_fails_gives_its_code_and_its_log(cluster_clone: Clone) -> None:
    done = start(cluster_clone.root, "custom", "--wait", "--dataset", "fashion_mnist", "--data", "nowhere")
    assert done.returncode == 3, done.stdout
    assert "  | error: " in done.stdout
    assert re.search(r"error: job \d+ ended as FAILED, exit code 3\n  Fix: its log: logs/", done.stderr)


@pytest.mark.slurm
def test_what_slurm_refuses_is_said_in_its_words(cluster_clone: Clone) -> None:
    done = start(cluster_clone.root, "mpi", "--partition", "nowhere")
    assert done.returncode == 4
    assert "error: sbatch failed: " in done.stderr
    assert "invalid partition" in done.stderr
