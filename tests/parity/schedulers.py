"""The schedulers by the ids of `modes.yaml`: their plans, and where they lead without a model."""

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)

import sd15

COMMON = dict(
    num_train_timesteps=1000,
    **sd15.BETAS,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=1,
)
DPMPP_2M = dict(COMMON, algorithm_type="dpmsolver++", solver_order=2)
SCHEDULERS = {
    "ddim": (DDIMScheduler, dict(COMMON, set_alpha_to_one=False, clip_sample=False)),
    "euler": (EulerDiscreteScheduler, COMMON),
    "euler_a": (EulerAncestralDiscreteScheduler, COMMON),
    "dpmpp_2m": (DPMSolverMultistepScheduler, DPMPP_2M),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, dict(DPMPP_2M, use_karras_sigmas=True)),
    "lcm": (LCMScheduler, dict(COMMON, set_alpha_to_one=False, original_inference_steps=50)),
}
PLANNED_STEPS = [1, 4, 20, 30, 50]
WALKED_STEPS = [1, 4, 20]
WALK_SEED = 7
WALK_SHAPE = (1, 4, 4, 4)
WALK_MODEL = "0.1 * scale_model_input(x, t) + 0.3 * sin(i + k), i: the step from 0, k: the element's index in x"


def make(id: str):
    kind, settings = SCHEDULERS[id]
    return kind(**settings)


def golden() -> dict:
    return {
        "model": WALK_MODEL,
        "seed": WALK_SEED,
        "shape": WALK_SHAPE,
        "schedulers": {id: _scheduler(id) for id in SCHEDULERS},
    }


def _scheduler(id: str) -> dict:
    return {
        "class": SCHEDULERS[id][0].__name__,
        "plans": [_plan(id, steps) for steps in PLANNED_STEPS],
        "walks": [_walk(id, steps) for steps in WALKED_STEPS],
    }


def _plan(id: str, steps: int) -> dict:
    scheduler = make(id)
    scheduler.set_timesteps(steps)
    plan = {
        "steps": steps,
        "timesteps": _numbers(scheduler.timesteps),
        "init_noise_sigma": _numbers(torch.as_tensor(scheduler.init_noise_sigma)),
    }
    if hasattr(scheduler, "sigmas"):
        plan["sigmas"] = _numbers(scheduler.sigmas)
    return plan


def _walk(id: str, steps: int) -> dict:
    """The pipeline's loop around a model that is a formula; noise in the pipeline's order of drawing."""
    scheduler = make(id)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(WALK_SEED)
    x = torch.randn(WALK_SHAPE, generator=generator) * scheduler.init_noise_sigma
    k = torch.arange(x.numel(), dtype=torch.float32).reshape(WALK_SHAPE)
    walk = {"steps": steps, "start": _numbers(x), "latents": []}
    for i, t in enumerate(scheduler.timesteps):
        output = 0.1 * scheduler.scale_model_input(x, t) + 0.3 * torch.sin(i + k)
        x = scheduler.step(output, t, x, generator=generator).prev_sample
        walk["latents"].append(_numbers(x))
    return walk


def _numbers(tensor: torch.Tensor):
    """Float32 in as few digits as bring it back exactly."""
    if tensor.ndim > 0:
        return [_numbers(value) for value in tensor.flatten()]
    if not tensor.is_floating_point():
        return int(tensor)
    return float(str(np.float32(tensor.item())))
