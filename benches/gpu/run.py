"""Measures diffused beside diffusers on this machine, on the same weights, prompts, seeds and steps. The README here says how.

    python benches/gpu/run.py --binary target/release/diffused --json results.json
    python benches/gpu/run.py --binary target/release/diffused --device cpu --tiny            # a dry run, in a minute
    python3 benches/gpu/run.py --binary target/release/diffused --device cpu --tiny --ours-only   # needs no torch

Rows are printed as they come, all tables at the end. It ends with 1 if a part failed; what there was no time for is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import lzma
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from card import Card, Host
from daemon import Binary, Daemon, Refused
from images import Case, Contestant, Gallery, Ours, Theirs, Turns, cases
from loads import Alternation, Loads, Transfers, queue
from options import FAMILIES, parse
from peer import Peer, PeerFailed, install
from table import Budget, Report

ROOT = Path(__file__).resolve().parents[2]
COMPILING = "torch.compile"
LEAST_TO_COMPILE = 10
OURS, GRAPHS, EAGER, COMPILED = "diffused", "diffused, CUDA graphs", "diffusers", "diffusers, torch.compile"


def main() -> int:
    options = parse(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    with tempfile.TemporaryDirectory(prefix="diffused-bench-") as scratch:
        bench = Bench(options, Path(scratch))
        try:
            bench.run()
        except PeerFailed as error:
            raise SystemExit(str(error)) from None
        finally:
            bench.stop()
    bench.report.tell("\n" + bench.report.markdown())
    return 1 if bench.failed else 0


@dataclass
class Models:
    """Files by family, and links to them in a folder of their own, where the daemons look; LoRAs are not there for all."""

    root: Path
    checkpoints: dict[str, Path] = field(default_factory=dict)
    has_lora: set[str] = field(default_factory=set)

    def add(self, family: str, checkpoint: Path, lora: Path | None) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / f"{family}.safetensors").symlink_to(checkpoint)
        if lora:
            (self.root / f"{family}-lora.safetensors").symlink_to(lora)
            self.has_lora.add(family)
        self.checkpoints[family] = checkpoint

    def configuration(self, memory: dict) -> dict:
        modes = {}
        for family in self.checkpoints:
            model = modes[family] = {"model": f"{family}.safetensors"}
            if family in self.has_lora:
                modes[f"{family}-lora"] = model | {"loras": [f"{family}-lora.safetensors"]}
        root = {"model_root": str(self.root)}
        return root | {"watch": "off", "default_mode": next(iter(self.checkpoints)), "memory": memory, "modes": modes}


class Bench:
    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.budget = Budget(options.budget_s)
        self.report = Report(options.json and options.json.absolute())
        self.on_card = options.device != "cpu"
        self.card = Card(int(options.device.partition(":")[2] or 0)) if self.on_card else Host()
        self.models = Models(scratch / "files")
        self.failed = False
        self.daemons: dict[str, Daemon] = {}
        self.peer: Peer | None = None
        self.peers: list[Peer] = []  # all that were started
        self.site: Path | None = None
        self.peer_environment: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.transfers = Transfers(None)
        images = (options.images or scratch / "images").absolute()
        images.mkdir(parents=True, exist_ok=True)
        self.gallery = Gallery(images, None, {})

    def run(self) -> None:
        self.binary = self._binary()
        if not self.options.ours_only:
            self._prepare_peers()
            self._revive()
        self._facts()
        for family in self.options.families:
            self._attempt(f"weights of {family}", 30, lambda: self._weights(family))
        if self.failed or list(self.models.checkpoints) != self.options.families:
            return
        self._attempt("start", 10, self._start)
        if OURS not in self.daemons:
            return
        for part in self.options.parts:
            getattr(self, f"_part_{part}")()

    def _part_images(self) -> None:
        for family in self.options.families:
            self._attempt(f"images of {family}", 30, lambda: self._images(family))

    def _part_switches(self) -> None:
        if self.options.families == list(FAMILIES):
            self._attempt("alternating switches", 40, self._switches)

    def _part_loads(self) -> None:
        for family in self.options.families:
            self._attempt(f"loads of {family}", 30, lambda: self._loads(family))

    def _part_queue(self) -> None:
        self._attempt("queued jobs", 10, self._queue)

    def _part_compile(self) -> None:
        """Each family by a process that is ended when the time for compiling is over."""
        if self.peer is None or self.options.compile_budget_s <= 0:
            return
        self.peer.stop()  # its memory is not to be in the way
        compiling = self.budget.part(self.options.compile_budget_s)
        for family in self.options.families:
            if compiling.left() < LEAST_TO_COMPILE:
                self.report.note(f"{COMPILING} of {family}: left out, the time for compiling is over")
            else:
                self._attempt(f"{COMPILING} of {family}", 60, lambda: self._compiled(family, compiling))

    def _attempt(self, part: str, least: float, run: Callable[[], object]) -> None:
        """What fails says so and is not the end of the others."""
        if self.budget.left() < least and not self.options.tiny:
            return self.report.note(f"{part}: left out, as {self.budget.left():.0f} s of the budget are left and it wants {least}")
        self.report.tell(f"\n{part} ({self.budget.left():.0f} s left)")
        try:
            if not part.startswith(COMPILING):
                self._revive()
            run()
        except (Refused, PeerFailed, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
            self.failed = True
            self.report.note(f"{part} failed: {type(error).__name__}: {error}")

    def _binary(self) -> Binary:
        path = self.options.binary.absolute()
        if not path.is_file():
            raise SystemExit(f"--binary {path}: there is no such file")
        if path.suffix == ".xz":
            packed, path = path, self.scratch / "diffused"
            with lzma.open(packed) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755)
            shim = packed.with_name("libdiffused_cuda.so")
            if shim.exists():
                shutil.copy(shim, path.with_name(shim.name))
        libraries = torch_libraries() if self.on_card or self.options.engine == "libtorch" else ()
        binary = Binary(path, libraries)
        self.report.fact("binary", f"{binary.says('--version').strip()}, {path.stat().st_size / 1e6:.1f} MB")
        return binary

    def _prepare_peers(self) -> None:
        if self.options.wheels:
            self.site = self.scratch / "site"
            self.report.tell(f"wheels installed in {install(self.options.wheels, self.site):.1f} s")
        self.peer_environment = {"TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor")}
        if self.options.vocabulary:
            self.peer_environment["CLIP_VOCABULARY"] = str(self.options.vocabulary.absolute())

    def _new_peer(self, name: str) -> Peer:
        peer = Peer(self.options.device, self.scratch / f"{name}.log", self.site, self.peer_environment)
        self.peers.append(peer)
        try:
            self.versions = peer.ask("hello", min(180, self.budget.left()))
        except PeerFailed as error:
            raise PeerFailed(f"diffusers cannot be asked (--ours-only does without): {error}") from None
        return peer

    def _revive(self) -> None:
        """What took too long was ended; the next part has another process."""
        if not self.options.ours_only and (self.peer is None or not self.peer.is_alive()):
            self.peer = self.gallery.judge = self.transfers.peer = self._new_peer("diffusers")

    def _facts(self) -> None:
        report, versions = self.report, self.versions
        report.fact("device", self.card.describe() or versions.get("device", self.options.device))
        report.fact("host", f"{os.cpu_count()} cores, {platform.platform()}")
        if versions:
            of = ("python", "torch", "diffusers", "transformers")
            report.fact("beside", ", ".join(f"{name} {versions[name]}" for name in of))
        report.fact("medians of", self.options.rounds)

    def _weights(self, family: str) -> None:
        folder, options = (self.options.weights or self.scratch).absolute(), self.options
        if options.tiny and (family == "sd15" or not self.peer):
            name = {"sd15": "demo", "sdxl": "demo-xl"}[family]
            lora = ROOT / "loras" / "demo-outline.safetensors" if family == "sd15" else None
            return self.models.add(family, ROOT / "models" / "demo" / f"{name}.safetensors", lora)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"tiny-{family}" if options.tiny else family
        out, lora = folder / f"{name}.safetensors", folder / f"{name}-lora.safetensors"
        if not (out.is_file() and lora.is_file()):
            left = min(self.budget.left(), 180)
            if options.random_checkpoint and not options.tiny:
                of = {"sd15": "sd1", "sdxl": "sdxl"}[family]
                command = [str(options.random_checkpoint.absolute()), "--family", of, "--lora", str(lora), str(out)]
                subprocess.run(command, check=True, timeout=left, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            elif self.peer:
                self.peer.ask("weights", left, family=family, out=str(out), lora=str(lora), tiny=options.tiny)
            else:
                raise ValueError("without torch, --random-checkpoint makes the weights, or --weights has them")
        self.models.add(family, out, lora)
        self.report.fact(f"weights of {family}", f"{out.stat().st_size / 2**30:.2f} GiB in fp16, random")

    def _start(self) -> None:
        """Without a host cache, so that what is loaded comes from the disk."""
        memory = {"host_cache_gb": 0} if self.on_card and self.binary.knows_key("host_cache_gb") else {}
        self._daemon(OURS, memory, "off")
        if self.on_card:
            self._daemon(GRAPHS, memory, "auto")

    def _daemon(self, name: str, memory: dict, graphs: str) -> Daemon:
        folder = self.scratch / "daemons" / name.replace(", ", "-").replace(" ", "-")
        environment = {"DIFFUSED_CUDA_GRAPHS": graphs}
        self.daemons[name] = Daemon(self.binary, folder, self.models.configuration(memory), self._wishes(), environment)
        return self.daemons[name]

    def _wishes(self) -> list[str]:
        """Engine, device and precision, as arguments. That it is to be the CPU need not be said to a binary that knows no other."""
        options, arguments = self.options, []
        by_default = {"engine": "libtorch"} if self.on_card else {}
        for name in ("engine", "device", "precision"):
            value = getattr(options, name) or by_default.get(name)
            if value and self.binary.knows_option(f"--{name}"):
                arguments += [f"--{name}", value]
            elif value and value != "cpu":
                raise Refused(f"this diffused has no --{name}, so it cannot be told {value!r}")
        return arguments

    def _ours(self) -> list[Contestant]:
        return [Ours(name, self.daemons[name]) for name in (OURS, GRAPHS) if name in self.daemons]

    def _images(self, family: str) -> None:
        contestants = self._ours()
        if self.peer:
            contestants.append(Theirs(EAGER, self.peer, self.models.checkpoints, self.options.tiny))
        ready = self._prepared(contestants, family)
        for case in cases(family, self.options.tiny):
            if any(one.name == EAGER for one in ready):
                self.gallery.references[case.name] = self.gallery.path(case, EAGER)
            self._turns(case, ready)

    def _prepared(self, contestants: list[Contestant], family: str) -> list[Contestant]:
        """Those that could load the model."""
        ready = []
        for one in contestants:
            try:
                one.prepare(family, min(self.budget.left(), 120))
                ready.append(one)
            except (Refused, PeerFailed) as error:
                self.failed = True
                self.report.note(f"{one.name} cannot load {family}: {error}")
        return ready

    def _turns(self, case: Case, contestants: list[Contestant]) -> None:
        turns = Turns(case, self.card, self.gallery, self.budget)
        turns.run(contestants, self.options.rounds, self.report)
        self.failed |= bool(turns.failed)

    def _switches(self) -> None:
        """With a host cache where the binary has one: then a switch is little more than the way over the bus."""
        memory: dict = {"max_models": 1}
        what = "switch, one loaded at a time"
        if self.on_card and self.binary.knows_key("host_cache_gb"):
            memory["host_cache_gb"] = 1 if self.options.tiny else 24
            what = "switch, from the host cache"
        daemon = self._daemon("switches", memory, "auto")
        try:
            alternation = Alternation(daemon, what, self.options.tiny, self.options.switches, self.budget.part(120))
            alternation.run(self.report, self.transfers, self.card)
        finally:
            self.daemons.pop("switches").stop()

    def _loads(self, family: str) -> None:
        for daemon in self.daemons.values():
            daemon.unload(self.budget.left())  # a file that is mapped stays in the page cache
        loads = Loads(self.report, self.daemons[OURS], self.transfers, family, self.budget.part(90))
        loads.from_disk(self.models.checkpoints[family], min(self.options.rounds, 3))
        if family in self.models.has_lora:
            loads.lora_swap(self.options.rounds)

    def _queue(self) -> None:
        daemon = self.daemons.get(GRAPHS) or self.daemons[OURS]
        case = cases(self.options.families[0], self.options.tiny)[0]
        queue(self.report, daemon, self.card, case, self.options.jobs, self.budget.part(90))

    def _compiled(self, family: str, compiling: Budget) -> None:
        peer = self._new_peer(f"compile-{family}")
        self.gallery.judge = peer
        theirs = Theirs(COMPILED, peer, self.models.checkpoints, self.options.tiny)
        theirs.prepare(family, min(self.budget.left(), 120))
        peer.ask("compile", 60)
        ours = self._prepared(self._ours()[-1:], family)
        for case in cases(family, self.options.tiny):
            try:
                first = theirs.draw(case, self.gallery.path(case, COMPILED), compiling.left())
            except PeerFailed as error:
                self.failed |= compiling.left() > 0  # then it was not ended for its time
                return self.report.note(f"{COMPILED}, {case.name}: left out, {compiling.left():.0f} s are left for compiling ({error})")
            self.report.note(f"{COMPILED}, {case.name}: the first image took {first.seconds:.1f} s, compiling included")
            self._turns(case, [*ours, theirs])
        peer.stop()

    def stop(self) -> None:
        for one in [*self.daemons.values(), *self.peers]:
            one.stop()


def torch_libraries() -> tuple[Path, ...]:
    """Where the libraries of this Python's torch are, and those that it brings along for the card."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return ()
    package = Path(found.origin).parent
    return (package / "lib", *sorted(package.parent.glob("nvidia/*/lib")))


if __name__ == "__main__":
    sys.exit(main())
