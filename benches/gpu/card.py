"""What the driver of a card says of processes and of how busy it is: by NVML's Python package, else by nvidia-smi; and
of a host's memory what the kernel says. All of it is asked for while something runs, from a thread."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

GIB = 1 << 30


class Card:
    """The card of that index. What nobody says is `None`."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.nvml, self.handle = None, None
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
        except Exception:  # no package, no driver, no card: each has its own class
            pass
        self.smi = None if self.nvml else shutil.which("nvidia-smi")

    def process_bytes(self, pid: int) -> int | None:
        """What that process holds of the card's memory, its context included."""
        if self.nvml:
            try:
                processes = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
            except self.nvml.NVMLError:
                return None
            return next((process.usedGpuMemory for process in processes if process.pid == pid), None)
        for row in self._ask("--query-compute-apps=pid,used_memory"):
            if row[0] == str(pid) and row[1].isdigit():
                return int(row[1]) << 20
        return None

    def used_bytes(self) -> int | None:
        """What all processes hold of it together."""
        if self.nvml:
            return self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used
        rows = self._ask("--query-gpu=memory.used")
        return int(rows[0][0]) << 20 if rows and rows[0][0].isdigit() else None

    def busy_percent(self) -> float | None:
        """In how much of the driver's last sampling period something ran on it."""
        if self.nvml:
            return float(self.nvml.nvmlDeviceGetUtilizationRates(self.handle).gpu)
        rows = self._ask("--query-gpu=utilization.gpu")
        return float(rows[0][0]) if rows and rows[0][0].isdigit() else None

    def describe(self) -> str | None:
        rows = self._ask("--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit", "csv,noheader")
        return ", ".join(rows[0]) if rows else None

    def _ask(self, query: str, form: str = "csv,noheader,nounits") -> list[list[str]]:
        program = self.smi or shutil.which("nvidia-smi")
        if not program:
            return []
        command = [program, f"--id={self.index}", query, f"--format={form}"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if answer.returncode != 0:
            return []
        return [[cell.strip() for cell in row.split(",")] for row in answer.stdout.splitlines() if row.strip()]


class Host:
    """The same of a machine without a card: a process's memory is what it has in RAM, and nobody says how busy it is."""

    def process_bytes(self, pid: int) -> int | None:
        return resident_bytes(pid)

    def used_bytes(self) -> int | None:
        return None

    def busy_percent(self) -> float | None:
        return None

    def describe(self) -> str | None:
        return None


def resident_bytes(pid: int) -> int | None:
    """
    >>> import os
    >>> resident_bytes(os.getpid()) > 1 << 20, resident_bytes(0)
    (True, None)
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(row.split()[1]) << 10 for row in status.splitlines() if row.startswith("VmRSS:")), None)


class Sampler:
    """Asks again and again while the block runs.

    >>> numbers = iter([1, 5, 3])
    >>> with Sampler(lambda: next(numbers, None), every=0.001) as sampled:
    ...     while len(sampled.values) < 3: pass
    >>> sampled.most, sampled.mean
    (5, 3.0)
    """

    def __init__(self, ask: Callable[[], float | None], every: float = 0.02) -> None:
        self.values: list[float] = []
        self._ask, self._every, self._over = ask, every, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            value = self._ask()
            if value is not None:
                self.values.append(value)
            if self._over.wait(self._every):
                return

    @property
    def most(self) -> float | None:
        return max(self.values, default=None)

    @property
    def mean(self) -> float | None:
        return sum(self.values) / len(self.values) if self.values else None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
