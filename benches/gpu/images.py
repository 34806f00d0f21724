"""The same image by several sides in turns: ours over HTTP, diffusers by its pipeline."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from card import GIB, Card, Host, Sampler
from daemon import Daemon, Refused
from peer import Peer, PeerFailed
from table import Budget, Report, median

PROMPT = "a red circle on a white background"  # which the models that come with the source know, too
NEGATIVE_PROMPT = "blurry, low quality"
WARM_UP = 2
IMAGE_SECONDS = 120


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    side: int
    steps: int
    guidance: float
    scheduler: str
    seed: int = 42

    def request(self) -> dict:
        """The body of `POST /generate`, its mode apart."""
        guided = {"negative_prompt": NEGATIVE_PROMPT} if self.guidance > 1 else {}
        return guided | {
            "prompt": PROMPT,
            "size": f"{self.side}x{self.side}",
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "scheduler": self.scheduler,
            "seed": self.seed,
        }

    def call(self) -> dict:
        """The same for `torch_side.py`."""
        sides = {"width": self.side, "height": self.side}
        return asdict(self) | sides | {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT}


def cases(family: str, tiny: bool) -> list[Case]:
    """
    >>> [case.name for case in cases("sdxl", tiny=False)], cases("sd15", tiny=True)[0].side
    (['sdxl 1024 lcm 4', 'sdxl 1024 guided 30'], 64)
    """
    side, few, many = (64, 2, 2) if tiny else ({"sd15": 512, "sdxl": 1024}[family], 4, 30)
    usual = {"sd15": "ddim", "sdxl": "euler"}[family]
    return [
        Case(f"{family} {side} lcm {few}", family, side, few, 1.0, "lcm"),
        Case(f"{family} {side} guided {many}", family, side, many, 7.5, usual),
    ]


@dataclass(frozen=True)
class Drawn:
    seconds: float
    denoise_ms: float
    decode_ms: float


class Contestant(Protocol):
    name: str

    def prepare(self, family: str, timeout: float) -> None: ...
    def draw(self, case: Case, out: Path, timeout: float) -> Drawn: ...
    def pid(self) -> int | None: ...
    def allocated_gib(self, case: Case) -> float | None: ...


class Ours:
    """A daemon. An image takes from the request to the last byte of its PNG; its stages are the daemon's own account of
    the job, in whole milliseconds."""

    def __init__(self, name: str, daemon: Daemon) -> None:
        self.name, self.daemon = name, daemon

    def prepare(self, family: str, timeout: float) -> None:
        self.daemon.unload(timeout)
        self.daemon.switch(family, timeout)

    def draw(self, case: Case, out: Path, timeout: float) -> Drawn:
        answer = self.daemon.post("/generate", case.request() | {"mode": case.family}, timeout)
        out.write_bytes(answer.body)
        timings = self.daemon.get(f"/api/jobs/{answer.headers['x-job-id']}")["timings"]
        return Drawn(answer.seconds, timings["denoise_ms"], timings["decode_ms"])

    def pid(self) -> int | None:
        return self.daemon.worker()

    def allocated_gib(self, case: Case) -> float | None:
        weights, besides = self.daemon.weights_gb(case.family), self.daemon.activation_gb(case.family)
        return None if weights is None or besides is None else weights + besides


class Theirs:
    """diffusers. An image takes from the pipeline's call to a PIL image."""

    def __init__(self, name: str, peer: Peer, files: dict[str, Path], tiny: bool) -> None:
        self.name, self.peer, self.files, self.tiny = name, peer, files, tiny

    def prepare(self, family: str, timeout: float) -> None:
        self.peer.ask("load", timeout, family=family, file=str(self.files[family]), tiny=self.tiny)

    def draw(self, case: Case, out: Path, timeout: float) -> Drawn:
        answer = self.peer.ask("draw", timeout, case=case.call(), out=str(out))
        return Drawn(answer["seconds"], answer["denoise_ms"], answer["decode_ms"])

    def pid(self) -> int | None:
        return self.peer.pid

    def allocated_gib(self, case: Case) -> float | None:
        return self.peer.ask("peak", 20)["allocated_gib"]


@dataclass
class Gallery:
    """Where images are, and which of each case the others are compared with; `judge` compares them."""

    folder: Path
    judge: Peer | None
    references: dict[str, Path]

    def path(self, case: Case, who: str) -> Path:
        return self.folder / f"{case.name}-{who}.png".replace(",", "").replace(" ", "_")

    def psnr(self, case: Case, file: Path) -> float | str | None:
        """In dB, or "equal"; `None` for the reference itself, and where there is none."""
        reference = self.references.get(case.name)
        if self.judge is None or reference is None or reference == file:
            return None
        return self.judge.ask("compare", 20, one=str(file), other=str(reference))["psnr_db"]


class Turns:
    """One case by all contestants."""

    def __init__(self, case: Case, card: Card | Host, gallery: Gallery, budget: Budget) -> None:
        self.case, self.card, self.gallery, self.budget = case, card, gallery, budget
        self.drawn: dict[str, list[Drawn]] = {}
        self.most_bytes: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def run(self, contestants: list[Contestant], rounds: int, report: Report) -> None:
        """A row for each. What is drawn to warm up counts for the memory alone."""
        for one in contestants:
            for _ in range(WARM_UP):
                self._draw(one)
            self.drawn[one.name] = []
        began, done = time.monotonic(), 0
        while done < rounds:
            for one in contestants:
                self._draw(one)
            done += 1
            if self.budget.left() < 1.2 * (time.monotonic() - began) / done:
                break
        for one in contestants:
            report.add("images", self._row(one))

    def _draw(self, one: Contestant) -> None:
        if one.name in self.failed:
            return
        timeout = min(self.budget.left(), IMAGE_SECONDS)
        pid = one.pid()
        try:
            with Sampler(lambda: self.card.process_bytes(pid) if pid else None) as sampled:
                drawn = one.draw(self.case, self.gallery.path(self.case, one.name), timeout)
        except (Refused, PeerFailed) as error:
            self.failed[one.name] = str(error)
            return
        self.drawn.setdefault(one.name, []).append(drawn)
        self.most_bytes[one.name] = max(self.most_bytes.get(one.name, 0), sampled.most or 0)

    def _row(self, one: Contestant) -> dict:
        drawn, case = self.drawn.get(one.name, []), self.case
        row: dict = {"case": case.name, "who": one.name, "runs": len(drawn)}
        if one.name in self.failed:
            row["note"] = f"failed: {self.failed[one.name]}"
        if not drawn:
            return row
        try:
            row["allocated_gib"] = one.allocated_gib(case)
            row["psnr_db"] = self.gallery.psnr(case, self.gallery.path(case, one.name))
        except (Refused, PeerFailed) as error:
            row.setdefault("note", str(error))
        most = self.most_bytes[one.name]
        return row | {
            "step_ms": median(it.denoise_ms / case.steps for it in drawn),
            "image_s": median(it.seconds for it in drawn),
            "decode_ms": median(it.decode_ms for it in drawn),
            "process_gib": most / GIB if most else None,
            "each": [asdict(it) for it in drawn],
        }
