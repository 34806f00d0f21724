"""The real `diffused`, in a temporary folder of its own, spoken to over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# What it would listen to besides its arguments.
VARIABLES = (
    "ADMISSION_TIMEOUT", "DEFAULT_GUIDANCE", "DEFAULT_SIZE", "DEFAULT_STEPS", "DEVICE", "DIFFUSED_ADMIN_KEY",
    "DIFFUSED_ADMIN_KEY_FILE", "DIFFUSED_CUDA_GRAPHS", "DIFFUSED_URL", "DRAIN_TIMEOUT", "ENGINE", "HOST", "LORA_ROOT",
    "MODEL", "MODEL_ROOT", "MODES_CONFIG", "NOTIFY_SOCKET", "PORT", "PRECISION", "PRELOAD", "QUEUE_MAX", "STOP_GRACE",
)  # fmt: skip
START_SECONDS = 120
FIGURES_SECONDS = 1.5


class Refused(Exception):
    """An answer that is no success; its text is the daemon's."""


@dataclass(frozen=True)
class Answer:
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass(frozen=True)
class Binary:
    """A built `diffused`, and what it is to find where it runs."""

    path: Path
    libraries: tuple[Path, ...] = ()

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        folders = [str(folder) for folder in self.libraries]
        folders += filter(None, [kept.get("LD_LIBRARY_PATH")])
        return kept | ({"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}) | more

    def says(self, *arguments: str) -> str:
        """What it prints, for that."""
        command = [str(self.path), *arguments]
        answer = subprocess.run(command, env=self.environment({}), capture_output=True, text=True, timeout=START_SECONDS)
        if answer.returncode != 0:
            raise Refused(f"{' '.join(command)}: {answer.stderr.strip() or answer.returncode}")
        return answer.stdout

    def knows_option(self, name: str) -> bool:
        return name in self.says("serve", "--help")

    def knows_key(self, name: str) -> bool:
        """Whether modes.yaml may have such a key."""
        return f'"{name}"' in self.says("schema")


class Daemon:
    """Runs until `stop`. Its log is `log` in its folder.

    `modes`: what modes.yaml says; JSON is YAML, too.
    """

    def __init__(self, binary: Binary, folder: Path, modes: dict, arguments: list[str], environment: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        (folder / "modes.yaml").write_text(json.dumps(modes, indent=1))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(binary.path), "serve", "--listen", "127.0.0.1:0", *arguments],
                cwd=folder,
                env=binary.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            self.address = self._address()
        except BaseException:
            self.stop()
            raise
        self._connection: http.client.HTTPConnection | None = None

    def _address(self) -> str:
        stdout = self.process.stdout
        there, _, _ = select.select([stdout], [], [], START_SECONDS)
        said = stdout.readline().decode().strip() if there else ""
        if not said.startswith("listening on http://"):
            raise Refused(f"the daemon did not begin to listen; the end of its log:\n{self.log_end()}")
        return urlsplit(said.split()[-1]).netloc

    def log_end(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Ends it at once, and waits until its worker is gone too, which ends with its socket."""
        worker = self.worker() if self.process.poll() is None else None
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 20
        while worker and Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.01)

    def worker(self) -> int | None:
        return child_of(self.process.pid)

    def get(self, path: str, timeout: float = 60) -> dict:
        return self.ask("GET", path, None, timeout).json()

    def post(self, path: str, body: dict, timeout: float) -> Answer:
        return self.ask("POST", path, body, timeout)

    def ask(self, method: str, path: str, body: dict | None, timeout: float) -> Answer:
        """On a connection that is kept; `seconds` are those from the request to the answer's last byte."""
        connection = self._connected(timeout)
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if content else {}
        start = time.perf_counter()
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection = None
            connection.close()
            raise Refused(f"{method} {path}: {error or type(error).__name__} (after {time.perf_counter() - start:.1f} s)") from error
        seconds = time.perf_counter() - start
        if response.status >= 400:
            raise Refused(f"{method} {path}: {response.status} {problem(answer)}")
        return Answer({name.lower(): value for name, value in response.getheaders()}, answer, seconds)

    def _connected(self, timeout: float) -> http.client.HTTPConnection:
        timeout = max(timeout, 0.1)
        kept = self._connection and self._connection.sock
        if not kept or select.select([kept], [], [], 0)[0]:  # nothing is to be said there now but that it is over
            self._connection = http.client.HTTPConnection(self.address, timeout=timeout)
            self._connection.connect()
        self._connection.sock.settimeout(timeout)
        return self._connection

    def switch(self, mode: str, timeout: float) -> float:
        """Seconds until the mode is loaded and current."""
        return self.post("/api/modes/switch", {"mode": mode, "wait": True}, timeout).seconds

    def unload(self, timeout: float, mode: str | None = None) -> None:
        what = {"all": True} if mode is None else {"mode": mode}
        self.post("/api/models/unload", {**what, "wait": True}, timeout)

    def weights_gb(self, mode: str) -> float | None:
        """What the mode's weights take where they are loaded, shared ones included."""
        models = self.get("/api/vram")["models"]
        return next((model["vram_gb"] for model in models if model["name"] == mode), None)

    def activation_gb(self, mode: str) -> float | None:
        models = self.get("/api/vram")["models"]
        return next((model["activation_peak_gb"] for model in models if model["name"] == mode), None)

    def floor(self) -> dict[str, float | None]:
        """What is held when everything is unloaded: the daemon's figures in gb by their names.

        Its worker may have been started anew for that; figures are as old as a second."""
        self.unload(timeout=60)
        end = time.monotonic() + 5
        time.sleep(FIGURES_SECONDS)
        while self.worker() is None and time.monotonic() < end:
            time.sleep(0.05)
        vram = self.get("/api/vram")
        figures = {name: value for name, value in vram.items() if name.endswith("_gb") and name not in NOT_THE_WORKERS}
        for gpu in vram["gpus"]:
            figures[f"gpus[{gpu['index']}].worker_gb"] = gpu["worker_gb"]
        return figures


# Of the whole device, and the limit; and what once was.
NOT_THE_WORKERS = ("total_gb", "used_gb", "available_gb", "limit_gb", "peak_gb")


def problem(body: bytes) -> str:
    """
    >>> problem(b'{"title": "no room", "detail": "needs 3 GiB", "errors": [{"pointer": "/size"}]}')
    'needs 3 GiB [{"pointer": "/size"}]'
    >>> problem(b"not JSON")
    'not JSON'
    """
    try:
        parsed = json.loads(body)
        errors = f" {json.dumps(parsed['errors'])}" if parsed.get("errors") else ""
        return f"{parsed['detail']}{errors}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:300].decode(errors="replace")


def child_of(pid: int) -> int | None:
    """The first process whose parent that one is, and that runs."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()  # a name may hold anything
        except OSError:
            continue  # it has ended
        if int(fields[1]) == pid and fields[0] not in "ZX":
            return int(entry.name)
    return None
