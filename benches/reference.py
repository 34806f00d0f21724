"""diffusers on the CPU, as the mark to beat: times its stages, or draws an image, from a single file of SD1.5 or SDXL.

    python benches/reference.py sd15.safetensors
    python benches/reference.py sd15.safetensors --image out.png --prompt "a fox" --seed 1 --steps 4 --scheduler lcm

Times come as JSON, a line for each stage: the median of several runs after one that is not counted, with the
models as quick as they can be had here: channels last, in float32 or bfloat16.
What must be installed is named in tests/parity/requirements.txt.
"""

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from safetensors import safe_open

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "parity"))
import schedulers  # noqa: E402
import sd15  # noqa: E402
import sdxl  # noqa: E402


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.inference_mode():
        pipeline = (sdxl if is_sdxl(options.checkpoint) else sd15).load(options.checkpoint)
        if options.image:
            draw(pipeline, options)
        else:
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
            for model in (pipeline.unet, pipeline.vae):
                model.to(dtype=dtype, memory_format=torch.channels_last)
            measure(pipeline, options, dtype)


def is_sdxl(checkpoint: Path) -> bool:
    with safe_open(checkpoint, framework="pt") as file:
        return any(name.startswith("conditioner.embedders.1.") for name in file.keys())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5, help="runs to take the median of (default 5)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    drawing = parser.add_argument_group("to draw instead of measuring")
    drawing.add_argument("--image", type=Path, metavar="OUT.png")
    drawing.add_argument("--prompt", default="a red fox in the snow, golden hour")
    drawing.add_argument("--negative-prompt")
    drawing.add_argument("--seed", type=int, default=42)
    drawing.add_argument("--steps", type=int, default=4)
    drawing.add_argument("--guidance-scale", type=float, default=1.0)
    drawing.add_argument("--scheduler", choices=schedulers.SCHEDULERS, default="ddim")
    return parser.parse_args()


def measure(pipeline, options: argparse.Namespace, dtype: torch.dtype) -> None:
    height, width = options.height // 8, options.width // 8
    timestep = torch.tensor(501)

    def randn(*dims: int) -> torch.Tensor:
        tensor = torch.randn(*dims, dtype=dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(dims) == 4 else tensor

    def unet_step(batch: int) -> Callable[[], object]:
        latents = randn(batch, 4, height, width)
        context = randn(batch, 77, pipeline.unet.config.cross_attention_dim)
        added = None
        if pipeline.unet.config.addition_embed_type == "text_time":
            size = [options.height, options.width]
            ids = torch.tensor([[*size, 0, 0, *size]] * batch, dtype=torch.float32)
            added = {"text_embeds": randn(batch, 1280), "time_ids": ids}
        return lambda: pipeline.unet(
            latents, timestep, encoder_hidden_states=context, added_cond_kwargs=added
        )

    latents = randn(1, 4, height, width)
    stages = [
        ("unet_step", 2, unet_step(batch=2)),
        ("unet_step", 1, unet_step(batch=1)),
        ("vae_decode", 1, lambda: pipeline.vae.decode(latents)),
    ]
    for stage, batch, run in stages:
        times = [seconds(run) for _ in range(1 + options.runs)][1:]
        line = {
            "engine": "diffusers",
            "stage": stage,
            "batch": batch,
            "width": options.width,
            "height": options.height,
            "threads": options.threads,
            "runs": options.runs,
            "seconds": round(statistics.median(times), 4),
        }
        print(json.dumps(line), flush=True)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def draw(pipeline, options: argparse.Namespace) -> None:
    pipeline.scheduler = schedulers.make(options.scheduler)
    image = pipeline(
        options.prompt,
        negative_prompt=options.negative_prompt,
        width=options.width,
        height=options.height,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(options.seed),
    ).images[0]
    image.save(options.image)


if __name__ == "__main__":
    main()
