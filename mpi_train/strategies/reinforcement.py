"""Reinforcement learning over MPI: ranks play environments of their own, and improve one policy together.

How they do it is in ``mpi_train/reinforcement``; this is the run around it, from config to record.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np

from mpi_train.models.flat import digest_of
from mpi_train.monitor import timeline
from mpi_train.monitor.progress import Progress
from mpi_train.reinforcement.environments import NAME
from mpi_train.reinforcement.record import FILE, ReinforcementRecord, UpdateRecord
from mpi_train.reinforcement.site import Site
from mpi_train.report import reward
from mpi_train.runs import folder, run_id
from mpi_train.runs.config import ReinforcementConfig, one_environment_a_rank
from mpi_train.runs.coordinator import Control
from mpi_train.runs.folder import RunFolder
from mpi_train.runtime import devices, machine, watchdog
from mpi_train.runtime.errors import RunAgainError
from mpi_train.runtime.world import World

PICTURE = "reward.png"


def train(config: ReinforcementConfig, world: World, threads: int) -> ReinforcementRecord:
    """Trains on all ranks of ``world`` and writes the record and the picture.

    Raises:
        UsageError: fewer environments than ranks, or an output folder that cannot be written.
        DivergedError: the weights are not finite, or went apart.
        RunAgainError: it was asked to stop. All of them on all ranks.
    """
    one_environment_a_rank(config.num_envs, world.size)
    recorder, progress = (
        RunFolder(config.out, world, FILE),
        Progress(speaks=world.is_root, style=config.style),
    )
    recorder.open()
    if config.trace:
        timeline.start(world)
        timeline.lap("import")
    with world.together():
        device = devices.own_device(world)
    began = time.time() - machine.process_age_s()
    name = run_id.new(began, ("reinforcement", f"{world.size}x", NAME, f"s{config.seed}"))
    name = recorder.begin(name, anew=True)
    recorder.event("submission_benchmark", "reinforcement")
    recorder.event("init_start")
    site = Site(config, world, device)
    timeline.lap("build")
    world.barrier()
    startup_s = world.maximum(machine.process_age_s())
    recorder.event("init_stop")
    recorder.event("global_batch_size", config.batch_size)
    recorder.event("seed", config.seed)
    recorder.event("run_start")
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''} x {threads} threads"
    progress.say(
        f"reinforcement: {NAME}, {config.num_envs} environments, "
        f"{config.batch_size:,} steps an update, {ranks}",
        "start",
        strategy="reinforcement",
        environment=NAME,
        num_envs=config.num_envs,
        global_batch_size=config.batch_size,
        world_size=world.size,
        threads_per_rank=threads,
    )
    control = Control(world)
    updates = []
    every = max(1, config.updates // 10)
    with control.listening(), timeline.kept(config.out / folder.TRACE, progress.say):
        for update in site.updates(control):
            updates.append(update)
            recorder.event("tracked_stats", {"mean_reward": update.mean_reward}, samples=update.env_steps)
            if update.update % every == 0 or update.update == config.updates:
                progress.say(_line(update, config.updates), "update", **asdict(update))
            if control.stopping and update.update < config.updates:
                recorder.event("run_stop", status="aborted")
                raise _stopped(world, control, update, config.updates)
        watchdog.note("evaluation")
        recorder.event("eval_start")
        start = time.perf_counter()
        with timeline.phase("evaluate"):
            rewards = site.evaluate()
        eval_s = world.maximum(time.perf_counter() - start)
    mean_reward = float(np.mean(rewards))
    recorder.event("eval_stop")
    recorder.event("eval_result", mean_reward, samples=updates[-1].env_steps)
    recorder.event("run_stop", status="success")
    record = ReinforcementRecord(
        run_id=name,
        command=machine.command(),
        environment_name=NAME,
        world_size=world.size,
        threads_per_rank=threads,
        num_envs=config.num_envs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        seed=config.seed,
        updates=updates,
        env_steps=updates[-1].env_steps,
        train_s=updates[-1].elapsed_s,
        eval_s=eval_s,
        mean_reward=mean_reward,
        episode_rewards=rewards,
        weights_sha256=digest_of(site.flat.export()),
        startup_s=startup_s,
        peak_rss_mib=machine.peak_rss_mib(world),
        environment=machine.describe(world),
    )
    recorder.write(record)
    if world.is_root:
        try:
            reward.draw(record, config.out / PICTURE)
        except OSError as error:
            progress.warn(f"{config.out / PICTURE}: {error.strerror}; not drawn")
    progress.say(
        f"reinforcement: {record.env_steps:,} steps in {record.train_s:.2f} s, mean reward {mean_reward:.1f} "
        f"over {len(rewards)} episodes; {recorder.path}",
        "finish",
        env_steps=record.env_steps,
        train_s=record.train_s,
        mean_reward=mean_reward,
        record=str(recorder.path),
    )
    return record


def _line(update: UpdateRecord, num_updates: int) -> str:
    ended = "no episode ended" if update.mean_reward is None else f"mean reward {update.mean_reward:.1f}"
    return (
        f"update {update.update}/{num_updates}  {update.env_steps:,} steps  {update.elapsed_s:.2f} s  {ended}"
    )


def _stopped(world: World, control: Control, update: UpdateRecord, num_updates: int) -> RunAgainError:
    reasons = [reason for reason in world.gather_all(control.reason) if reason]
    return RunAgainError(
        f"stopped by {reasons[0]} after update {update.update} of {num_updates}; a run as short as this "
        f"saves nothing on its way",
        remedy="run the same command again, which starts anew",
    )
