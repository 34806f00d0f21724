"""diffusers, measured: a process that reads what to do as JSON on its standard input, a line each, and answers likewise.

    python benches/gpu/torch_side.py cuda:0
    {"do": "load", "family": "sd15", "file": "sd15.safetensors", "tiny": false}

Pipelines come from single files by tests/parity/sd15.py and sdxl.py, in fp16 and channels last on a card, in fp32 on a CPU.
`HANDLERS` lists all that it does. An error is answered as {"error": "..."}, and it goes on.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "parity"))
sys.path.append(str(ROOT / "tools" / "demo_model"))

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

import schedulers  # noqa: E402
import sd15  # noqa: E402
import sdxl  # noqa: E402
import weights  # noqa: E402

GIB = 1 << 30


class Side:
    """One pipeline at a time."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.on_card = self.device.type == "cuda"
        self.dtype = torch.float16 if self.on_card else torch.float32
        self.pipeline = None
        self.marks: dict[str, float] = {}

    def hello(self) -> dict:
        if self.on_card:
            torch.zeros(1, device=self.device)
        return {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
            "device": torch.cuda.get_device_name(self.device) if self.on_card else f"CPU, {torch.get_num_threads()} threads",
        }

    def weights(self, family: str, out: str, lora: str, tiny: bool) -> dict:
        with torch.inference_mode():
            if tiny:
                weights.write_tiny(family, Path(out), Path(lora))
            else:
                weights.write(family, Path(out), Path(lora), self.device)
        return self.release()  # what was made on the card is to leave it

    def load(self, family: str, file: str, tiny: bool) -> dict:
        self.release()
        start = time.perf_counter()
        of = {"sd15": sd15, "sdxl": sdxl}[family]
        pipeline = of.load(Path(file), **(weights.tiny(family) if tiny else {}), dtype=self.dtype)
        pipeline.to(self.device)
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        self._watch(pipeline)
        self.pipeline = pipeline
        self.peak()  # what loading took is none of what drawing takes
        return {"seconds": time.perf_counter() - start}

    def _watch(self, pipeline) -> None:
        """Notes when denoising begins and when the image is decoded; when the last step is done, a callback says."""
        prepare, decode = pipeline.prepare_latents, pipeline.vae.decode

        def prepare_latents(*arguments, **named):
            self._mark("begun")
            return prepare(*arguments, **named)

        def decoded(*arguments, **named):
            image = decode(*arguments, **named)
            self._mark("decoded")
            return image

        pipeline.prepare_latents, pipeline.vae.decode = prepare_latents, decoded

    def _mark(self, name: str) -> None:
        self.synchronize()
        self.marks[name] = time.perf_counter()

    def synchronize(self) -> None:
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def compile(self) -> dict:
        """Of the UNet; the first drawing of each size and batch does the work."""
        self.pipeline.unet = torch.compile(self.pipeline.unet, mode="max-autotune", dynamic=False)
        return {}

    def draw(self, case: dict, out: str) -> dict:
        """Milliseconds of the stages, and seconds from the call to a PIL image."""
        pipeline = self.pipeline
        pipeline.scheduler = schedulers.make(case["scheduler"])
        guided = case["guidance"] > 1

        def step_done(_pipeline, step: int, _timestep, values: dict) -> dict:
            if step + 1 == case["steps"]:
                self._mark("denoised")
            return values

        start = time.perf_counter()
        image = pipeline(
            case["prompt"],
            negative_prompt=case["negative_prompt"] if guided else None,
            width=case["width"],
            height=case["height"],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance"],
            generator=torch.Generator("cpu").manual_seed(case["seed"]),
            callback_on_step_end=step_done,
        ).images[0]
        seconds = time.perf_counter() - start
        image.save(out)
        marks = self.marks
        return {
            "seconds": seconds,
            "denoise_ms": 1000 * (marks["denoised"] - marks["begun"]),
            "decode_ms": 1000 * (marks["decoded"] - marks["denoised"]),
        }

    def peak(self) -> dict:
        """What torch had allocated at most since it was asked last; `null` on a CPU, where it does not count."""
        if not self.on_card:
            return {"allocated_gib": None}
        allocated = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return {"allocated_gib": allocated / GIB}

    def release(self) -> dict:
        self.pipeline = None
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return {}

    def transfer(self, bytes: int, rounds: int) -> dict:
        """Seconds that so many bytes take from pinned memory to the device, in pieces of 256 MiB: the fastest of the rounds."""
        piece = min(bytes, 256 << 20)
        source = torch.empty(piece, dtype=torch.uint8, pin_memory=self.on_card)
        source.fill_(1)  # so that its pages are there
        target = torch.empty(piece, dtype=torch.uint8, device=self.device)
        times = []
        for _ in range(rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            for first in range(0, bytes, piece):
                count = min(piece, bytes - first)
                target[:count].copy_(source[:count], non_blocking=True)
            self.synchronize()
            times.append(time.perf_counter() - start)
        return {"seconds": min(times)}

    def compare(self, one: str, other: str) -> dict:
        """Of two images: peak signal to noise in dB, or "equal"."""
        first, second = (np.asarray(Image.open(file).convert("RGB"), dtype=np.float64) for file in (one, other))
        if first.shape != second.shape:
            raise ValueError(f"{one} is {first.shape}, {other} is {second.shape}")
        error = np.square(first - second).mean()
        return {"psnr_db": "equal" if error == 0 else float(10 * np.log10(255**2 / error))}


HANDLERS = ("hello", "weights", "load", "compile", "draw", "peak", "release", "transfer", "compare")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does so among the errors
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    side = Side(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        do = asked.pop("do")
        if do not in HANDLERS:
            answer = {"error": f"no such thing: {do}"}
        else:
            answer = attempt(getattr(side, do), asked)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def attempt(handler, arguments: dict) -> dict:
    try:
        return handler(**arguments)
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {first[0][:300]}"}


if __name__ == "__main__":
    main()
