"""Whole images, drawn by `StableDiffusionPipeline` itself."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import schedulers

PROMPT = "a red fox in the snow, golden hour"
NEGATIVE_PROMPT = "blurry, low quality"
SIZES = [(128, 128), (192, 128)]
GUIDANCE_SCALES = [1.0, 7.5]
# The others are held by their walks, and drawn once.
EVERY_WAY = ["ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "lcm"]


def settings() -> list[dict]:
    """Every request; the same words are the manifest's keys."""
    requests = []
    for scheduler in schedulers.SCHEDULERS:
        if scheduler not in EVERY_WAY:
            requests.append(_request(scheduler, 128, 128, 7.5))
            continue
        for width, height in SIZES:
            for guidance_scale in GUIDANCE_SCALES:
                requests.append(_request(scheduler, width, height, guidance_scale))
    # Sizes that are no multiples of 64 halve to odd ones; a seed beyond 32 bits; a layer of CLIP skipped.
    requests.append(_request("euler_a", 72, 104, 7.5, seed=2**63 + 1))
    requests.append(_request("ddim", 128, 128, 7.5, clip_skip=1))
    requests.append(_request("ddim", 128, 128, 7.5, negative_prompt=None))
    return requests


def _request(scheduler: str, width: int, height: int, guidance_scale: float, **more) -> dict:
    request = dict(
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=width,
        height=height,
        steps=4 if scheduler == "lcm" else 6,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        seed=42,
        clip_skip=0,
    )
    request |= more
    marks = [scheduler, f"{width}x{height}", f"g{guidance_scale}"]
    if "clip_skip" in more:
        marks.append(f"skip{more['clip_skip']}")
    if "negative_prompt" in more:
        marks.append("no-negative")
    return {"file": "-".join(marks) + ".png", **request}


def draw(pipeline: StableDiffusionPipeline, request: dict, folder: Path) -> torch.Tensor:
    """Writes the image, returns the latents that it was decoded from."""
    last = {}

    def keep(_pipeline, _step, _timestep, values):
        last.update(values)
        return {}

    pipeline.scheduler = schedulers.make(request["scheduler"])
    image = pipeline(
        request["prompt"],
        negative_prompt=request["negative_prompt"],
        width=request["width"],
        height=request["height"],
        num_inference_steps=request["steps"],
        guidance_scale=request["guidance_scale"],
        # The pipeline's own way of saying 0, which must be the same.
        clip_skip=request["clip_skip"] or None,
        generator=torch.Generator("cpu").manual_seed(request["seed"]),
        callback_on_step_end=keep,
    ).images[0]
    image.save(folder / request["file"])
    return last["latents"]
