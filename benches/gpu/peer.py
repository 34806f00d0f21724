"""The other side, diffusers, in a process of its own (`torch_side.py`): so that its memory is told apart by the driver, what
takes too long can be ended, and this side needs no torch."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


class PeerFailed(Exception):
    """What went wrong there, in one line; it may go on or have ended."""


class Peer:
    """A process that does one thing after the other: JSON in, JSON out, a line each."""

    def __init__(self, device: str, log: Path, site: Path | None, more: dict[str, str]) -> None:
        environment = os.environ | OFFLINE | more
        if site:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), environment.get("PYTHONPATH")]))
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("torch_side.py")), device],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                preexec_fn=os.setpgrp,  # it may start others, to compile, which end with it
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for answer in self.process.stdout:
            self._answers.put(answer)
        self._answers.put("")  # it has ended

    def ask(self, do: str, timeout: float, **arguments: object) -> dict:
        """After `timeout` seconds the process is ended."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            answer = self._answers.get(timeout=max(timeout, 0.1))
        except queue.Empty:
            self.stop()
            raise PeerFailed(f"{do}: ended after {timeout:.0f} s") from None
        except OSError:
            answer = ""
        if not answer:
            raise PeerFailed(f"{do}: the process has ended, {self._last_words()}")
        parsed = json.loads(answer)
        if "error" in parsed:
            raise PeerFailed(f"{do}: {parsed['error']}")
        return parsed

    def _last_words(self) -> str:
        code = self.process.wait()
        if code < 0:
            return f"by signal {-code}"
        return f"with {code}: {(self.log.read_text(errors='replace').splitlines() or ['it said nothing'])[-1]}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        if self.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def install(wheels: Path, site: Path) -> float:
    """Installs all wheels of a folder into `site`, with no network; seconds that it took."""
    files = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"--wheels {wheels}: there is no wheel in it")
    start = time.monotonic()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    done = subprocess.run([*pip, "--target", str(site), *files], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"--wheels {wheels}: {done.stderr.strip()}")
    return time.monotonic() - start
