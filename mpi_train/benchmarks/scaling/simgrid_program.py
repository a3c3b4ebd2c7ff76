"""An all-reduce of many ranks in the simulator SimGrid, message by message; a program of its own.

Run by whichever Python has SimGrid: it reads a JSON object from standard input and writes one to standard
output, and needs nothing else. Each rank is an actor on a host with a link of its own to a switch, one way
and the other, as wide as the measured bandwidth, and messages share what links have: nothing here knows the
formulas of ``cost``. SimGrid: Casanova, Giersch, Legrand, Quinson, Suter 2014, "Versatile, scalable, and
accurate simulation of distributed applications and platforms".

Input: ``latency_s``, ``bytes_per_s``, ``num_bytes``, ``algorithm``, ``ranks`` (a power of two) and
``rounds``, how many of them to simulate. Output: ``version``, ``seconds`` and ``messages``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

# A message of a round: to which rank, from which, and how many bytes.
Message = tuple[int, int, float]


def ring(rank: int, size: int, num_bytes: float) -> Iterator[Message]:
    for _ in range(2 * (size - 1)):
        yield (rank + 1) % size, (rank - 1) % size, num_bytes / size


def recursive_doubling(rank: int, size: int, num_bytes: float) -> Iterator[Message]:
    for bit in range(size.bit_length() - 1):
        yield rank ^ 1 << bit, rank ^ 1 << bit, num_bytes


def halving_doubling(rank: int, size: int, num_bytes: float) -> Iterator[Message]:
    bits = range(size.bit_length() - 1)
    for bit in (*bits, *reversed(bits)):
        yield rank ^ 1 << bit, rank ^ 1 << bit, num_bytes / 2 ** (bit + 1)


ALGORITHMS: dict[str, Callable[[int, int, float], Iterator[Message]]] = {
    "ring": ring,
    "recursive doubling": recursive_doubling,
    "halving and doubling": halving_doubling,
}


def simulate(simgrid: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Simulated seconds until the last rank has all."""
    # A network in which a message takes latency + bytes / bandwidth: no slow start, no windows of TCP.
    settings = ("network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0")
    engine = simgrid.Engine(["simgrid", "--log=root.thresh:error", *(f"--cfg={each}" for each in settings)])
    size, rounds = case["ranks"], case["rounds"]
    zone = simgrid.NetZone.create_star_zone("switch")
    hosts = []
    for rank in range(size):
        host = zone.create_host(str(rank), 1e9)
        link = zone.create_split_duplex_link(f"link {rank}", case["bytes_per_s"])
        link.set_latency(case["latency_s"] / 2)  # a message passes two
        up = simgrid.LinkInRoute(link, simgrid.LinkInRoute.Direction.UP)
        zone.add_route(host.netpoint, None, None, None, [up], True)
        hosts.append(host)
    zone.seal()
    ends: list[float] = []
    messages = 0

    def work(rank: int) -> None:
        nonlocal messages
        steps = ALGORITHMS[case["algorithm"]](rank, size, case["num_bytes"])
        for number, (to, source, num_bytes) in enumerate(steps):
            if number == rounds:
                break
            sent = simgrid.Mailbox.by_name(f"{rank} to {to}").put_async(number, round(num_bytes))
            simgrid.Mailbox.by_name(f"{source} to {rank}").get()
            sent.wait()
            messages += 1
        ends.append(simgrid.Engine.clock)

    for rank, host in enumerate(hosts):
        simgrid.Actor.create(str(rank), host, work, rank)
    engine.run()
    return {"version": simgrid.simgrid_version, "seconds": max(ends), "messages": messages}


if __name__ == "__main__":
    import simgrid

    print(json.dumps(simulate(simgrid, json.load(sys.stdin))))
