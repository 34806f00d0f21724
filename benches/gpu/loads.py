"""What it takes to have a model ready, and what is left when it has gone: loads, switches, LoRAs, the memory's floor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from card import Card, Host, Sampler
from daemon import Daemon, Refused
from images import Case, cases
from peer import Peer, PeerFailed
from table import Budget, Report, median

MIB = 1 << 20
GB = 1 << 30  # as the daemon counts


class Transfers:
    """How long so many bytes take from pinned memory to the device, by themselves."""

    def __init__(self, peer: Peer | None) -> None:
        self.peer = peer

    def ms(self, gb: float | None, timeout: float) -> float | None:
        if self.peer is None or not gb:
            return None
        try:
            return 1000 * self.peer.ask("transfer", min(timeout, 60), bytes=int(gb * GB), rounds=3)["seconds"]
        except PeerFailed:
            return None


def drop_pages(path: Path) -> None:
    """Has the kernel let go of what it keeps of the file, as far as it likes to."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(path: Path) -> float:
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(16 * MIB)
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


class Loads:
    """Rows of one model on one daemon."""

    def __init__(self, report: Report, daemon: Daemon, transfers: Transfers, family: str, budget: Budget) -> None:
        self.report, self.daemon, self.transfers = report, daemon, transfers
        self.family, self.budget = family, budget

    def from_disk(self, file: Path, rounds: int) -> None:
        """Cold once, from the page cache `rounds` times; beside each, reading the file and nothing else."""
        daemon, size = self.daemon, file.stat().st_size / GB
        drop_pages(file)
        cold_read = read_seconds(file)
        daemon.unload(self.budget.left())
        drop_pages(file)
        cold = daemon.switch(self.family, self.budget.left())
        weights = daemon.weights_gb(self.family)
        bare = self.transfers.ms(weights, self.budget.left())
        if bare:
            self._add("bare transfer, pinned to device", bare, weights, bare, 3)
        self._add("read the file, page cache dropped", 1000 * cold_read, size, None, 1)
        self._add("load, page cache dropped", 1000 * cold, weights, bare, 1)
        self._add("read the file, page cache", 1000 * read_seconds(file), size, None, 1)
        took = self._again(rounds, lambda: daemon.unload(self.budget.left()), self.family)
        self._add("load, page cache", median(took), weights, bare, len(took))

    def lora_swap(self, rounds: int) -> None:
        """To a mode that differs in a LoRA, while its base is loaded."""
        mode = f"{self.family}-lora"
        self.daemon.switch(self.family, self.budget.left())

        def leave() -> None:
            self.daemon.switch(self.family, self.budget.left())
            self.daemon.unload(self.budget.left(), mode)

        leave()
        took = self._again(rounds, leave, mode)
        self._add("another LoRA on the same base", median(took), None, None, len(took))
        resident = self._again(rounds, lambda: self.daemon.switch(self.family, self.budget.left()), mode)
        self._add("switch to what is loaded", median(resident), None, None, len(resident))

    def _again(self, rounds: int, before: Callable[[], object], mode: str) -> list[float]:
        """Milliseconds of each switch to the mode, as many as there is time for, and at least one."""
        took: list[float] = []
        while len(took) < rounds and (not took or self.budget.left() > 3 * took[-1] / 1000):
            before()
            took.append(1000 * self.daemon.switch(mode, self.budget.left()))
        return took

    def _add(self, what: str, ms: float | None, gb: float | None, bare: float | None, runs: int) -> None:
        self.report.add("loads", load_row(what, self.family, ms, gb, bare, runs))


def load_row(what: str, model: str, ms: float | None, gb: float | None, bare_ms: float | None, runs: int) -> dict:
    """
    >>> load_row("load", "sd15", 200.0, 2.0, 50.0, 3)["over_transfer"], load_row("load", "sd15", 200.0, 2.0, 50.0, 3)["gib_s"]
    (4.0, 10.0)
    """
    row = {"what": what, "model": model, "ms": ms, "gib": gb, "runs": runs}
    if ms and gb:
        row["gib_s"] = gb / (ms / 1000)
    if ms and bare_ms:
        row["over_transfer"] = ms / bare_ms
    return row


@dataclass
class Alternation:
    """`count` switches between SD1.5 and SDXL on a daemon that keeps one loaded, an image of one step after each; and what is
    held with nothing loaded, before and after. (Both were loaded and drew before the first look.)"""

    daemon: Daemon
    what: str
    tiny: bool
    count: int
    budget: Budget

    def run(self, report: Report, transfers: Transfers, card: Card | Host) -> None:
        families = ("sd15", "sdxl")
        took: dict[str, list[float]] = {family: [] for family in families}
        weights = {}
        for family in families:
            self._use(family)
            weights[family] = self.daemon.weights_gb(family)
        before = floor(self.daemon, card)
        self._use(families[1])
        while sum(map(len, took.values())) < self.count and self.budget.left() > 10:
            for family in families:
                took[family].append(self._use(family))
        for family, each in took.items():
            if each:
                bare = transfers.ms(weights[family], self.budget.left())
                report.add("loads", load_row(self.what, family, median(each), weights[family], bare, len(each)))
        after = floor(self.daemon, card)
        for name in before:
            report.add("floor", {"what": name, "before": before[name], "after": after.get(name)})

    def _use(self, family: str) -> float:
        """Milliseconds that the switch took."""
        seconds = self.daemon.switch(family, self.budget.left())
        case = cases(family, self.tiny)[0]
        one_step = case.request() | {"mode": family, "num_inference_steps": 1}
        self.daemon.post("/generate", one_step, self.budget.left())
        return 1000 * seconds


def floor(daemon: Daemon, card: Card | Host) -> dict[str, float | None]:
    """With everything unloaded: the daemon's figures, and what the driver says of its worker. GiB."""
    figures = daemon.floor()
    pid = daemon.worker()
    held = card.process_bytes(pid) if pid else None
    figures["worker, by the driver or the kernel"] = None if held is None else held / GB
    return figures


def queue(report: Report, daemon: Daemon, card: Card | Host, case: Case, jobs: int, budget: Budget) -> None:
    """As many jobs as that, one behind the other: what of their time is none of their stages'."""
    body = case.request() | {"mode": case.family}
    daemon.post("/generate", body, budget.left())  # what comes first finds the mode loaded and warm
    daemon.post("/api/queue/pause", {}, 20)
    ids = [daemon.post("/api/jobs", body, 20).json()["id"] for _ in range(jobs)]
    with Sampler(card.busy_percent, every=0.1) as busy:
        daemon.post("/api/queue/resume", {}, 20)
        while (last := daemon.get(f"/api/jobs/{ids[-1]}"))["state"] not in ("done", "failed", "cancelled"):
            if budget.left() <= 0:
                raise Refused(f"{jobs} queued jobs: there was no time for them; the last one is {last['state']}")
            time.sleep(0.02)
    done = [daemon.get(f"/api/jobs/{id}") for id in ids]
    if failed := [job for job in done if job["state"] != "done"]:
        raise Refused(f"{len(failed)} of {jobs} queued jobs did not end well: {failed[0].get('reason', failed[0]['state'])}")
    stages = [sum(job["timings"][stage] for stage in ("encode_ms", "denoise_ms", "decode_ms")) for job in done]
    total = max(job["finished_unix_ms"] for job in done) - min(job["started_unix_ms"] for job in done)
    report.add(
        "queue",
        {
            "case": case.name,
            "jobs": jobs,
            "total_ms": total,
            "busy_ms": sum(stages),
            "gap_ms": (total - sum(stages)) / jobs,
            "busy_percent": 100 * sum(stages) / total if total else None,
            "utilisation_percent": busy.mean,
        },
    )
