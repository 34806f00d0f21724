"""The schedulers by the ids of `modes.yaml`: their plans, and where they lead without a model."""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor

import sd15

COMMON = dict(
    num_train_timesteps=1000,
    **sd15.BETAS,
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=1,
)
KARRAS = dict(use_karras_sigmas=True)
DPMPP_2M = dict(COMMON, algorithm_type="dpmsolver++", solver_order=2)
DPMPP_2M_SDE = dict(DPMPP_2M, algorithm_type="sde-dpmsolver++")
# It has no spacing but its own. It could not end at sigma 0 with another order than 1, and would say so.
DPMPP_SDE = dict(
    num_train_timesteps=1000,
    **sd15.BETAS,
    prediction_type="epsilon",
    algorithm_type="sde-dpmsolver++",
    solver_order=2,
    lower_order_final=True,
)
SCHEDULERS = {
    "ddim": (DDIMScheduler, dict(COMMON, set_alpha_to_one=False, clip_sample=False)),
    "pndm": (PNDMScheduler, dict(COMMON, set_alpha_to_one=False, skip_prk_steps=True)),
    "euler": (EulerDiscreteScheduler, COMMON),
    "euler_a": (EulerAncestralDiscreteScheduler, COMMON),
    "heun": (HeunDiscreteScheduler, COMMON),
    "lms": (LMSDiscreteScheduler, COMMON),
    "dpmpp_2m": (DPMSolverMultistepScheduler, DPMPP_2M),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, DPMPP_2M | KARRAS),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, DPMPP_2M_SDE),
    "dpmpp_2m_sde_karras": (DPMSolverMultistepScheduler, DPMPP_2M_SDE | KARRAS),
    "dpmpp_sde": (DPMSolverSinglestepScheduler, DPMPP_SDE),
    "dpmpp_sde_karras": (DPMSolverSinglestepScheduler, DPMPP_SDE | KARRAS),
    "unipc": (UniPCMultistepScheduler, COMMON),
    "lcm": (LCMScheduler, dict(COMMON, set_alpha_to_one=False, original_inference_steps=50)),
}
# These space by themselves.
UNSPACED = {"dpmpp_2m_karras", "dpmpp_2m_sde_karras", "dpmpp_sde", "dpmpp_sde_karras", "lcm"}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}

PLANNED_STEPS = [1, 4, 20, 30, 50]
RESPACED_STEPS = [4, 20]
WALKED_STEPS = [1, 4, 20]
# One image of a batch each. An image has 16 numbers, which is as few as torch draws all at once.
WALK_SEEDS = [7, 8]
WALK_SHAPE = (2, 4, 2, 2)
WALK_MODEL = "0.1 * scale_model_input(x, t) + 0.3 * sin(i + k), i: the step from 0, k: the element's index in x"
WALK_IMAGE = "2 * cos(k)"
# Latents are recorded after every so many steps, and after the last.
WALK_STRIDE = 5


def make(id: str, spacing: str = None, prediction: str = None, zero_terminal_snr: bool = False):
    kind, settings = SCHEDULERS[id]
    if spacing:
        settings = settings | dict(timestep_spacing=spacing)
    if prediction:
        settings = settings | dict(prediction_type=PREDICTIONS[prediction])
    if zero_terminal_snr:
        settings = settings | dict(rescale_betas_zero_snr=True)
    return kind(**settings)


def golden() -> dict:
    return {
        "model": WALK_MODEL,
        "image": WALK_IMAGE,
        "seeds": WALK_SEEDS,
        "shape": WALK_SHAPE,
        "schedulers": {id: _scheduler(id) for id in SCHEDULERS},
    }


def _scheduler(id: str) -> dict:
    kind = SCHEDULERS[id][0]
    plans = [dict(steps=steps) for steps in PLANNED_STEPS]
    walks = [dict(steps=steps, prediction=prediction) for prediction in PREDICTIONS for steps in WALKED_STEPS]
    walks += [dict(steps=10, prediction=prediction, strength=0.6) for prediction in PREDICTIONS]
    # Odd and even beginnings.
    walks += [dict(steps=10, strength=strength) for strength in (0.1, 0.7, 0.9, 1.0)]
    if id not in UNSPACED:
        for spacing in ("trailing", "linspace"):
            plans += [dict(steps=steps, spacing=spacing) for steps in RESPACED_STEPS]
            walks += [dict(steps=steps, spacing=spacing) for steps in (1, 6)]
            walks.append(dict(steps=10, spacing=spacing, strength=0.6))
    can_rescale = "rescale_betas_zero_snr" in inspect.signature(kind).parameters
    if can_rescale:
        rescaled = dict(prediction="v", zero_terminal_snr=True)
        if id not in UNSPACED:
            rescaled["spacing"] = "trailing"
        plans += [dict(steps=steps, **rescaled) for steps in RESPACED_STEPS]
        walks += [dict(steps=steps, **rescaled) for steps in (1, 4, 20)]
        walks.append(dict(steps=10, strength=0.6, **rescaled))
    if kind is DDIMScheduler:
        walks += [dict(steps=6, eta=eta, prediction=prediction) for eta in (0.5, 1.0) for prediction in PREDICTIONS]
    return {
        "class": kind.__name__,
        "can_rescale": can_rescale,
        "plans": [_plan(id, settings) for settings in plans],
        "walks": [_walk(id, settings) for settings in walks],
    }


def _plan(id: str, settings: dict) -> dict:
    scheduler = _started(id, settings)
    plan = settings | {
        "timesteps": _numbers(scheduler.timesteps),
        "init_noise_sigma": _numbers(torch.as_tensor(scheduler.init_noise_sigma)),
    }
    if hasattr(scheduler, "sigmas"):
        plan["sigmas"] = _numbers(scheduler.sigmas)
    return plan


def _walk(id: str, settings: dict) -> dict:
    """The pipelines' loop around a model that is a formula; noise in the pipelines' order of drawing."""
    scheduler = _started(id, settings)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in WALK_SEEDS]
    noise = randn_tensor(WALK_SHAPE, generator=generators)
    k = torch.arange(noise.numel(), dtype=torch.float32).reshape(WALK_SHAPE)
    timesteps = scheduler.timesteps
    strength = settings.get("strength")
    if strength:
        pipeline = SimpleNamespace(scheduler=scheduler)
        timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, settings["steps"], strength, None)
        x = scheduler.add_noise(2 * torch.cos(k), noise, timesteps[:1])
    else:
        x = noise * scheduler.init_noise_sigma
    walk = settings | {"start": _numbers(x), "latents": []}
    if strength:
        walk["after"] = []
    more = {"eta": settings["eta"]} if "eta" in settings else {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        more["generator"] = generators
    for i, t in enumerate(timesteps):
        output = 0.1 * scheduler.scale_model_input(x, t) + 0.3 * torch.sin(i + k)
        with _precisely(scheduler, settings):
            x = scheduler.step(output, t, x, **more).prev_sample
        is_last = i + 1 == len(timesteps)
        if i % WALK_STRIDE == 0 or is_last:
            walk["latents"].append([i, _numbers(x)])
        if strength and not is_last:
            walk["after"].append(_level(scheduler, timesteps[i + 1 : i + 2]))
    return walk


def _started(id: str, settings: dict):
    changes = {key: value for key, value in settings.items() if key in inspect.signature(make).parameters}
    scheduler = make(id, **changes)
    scheduler.set_timesteps(settings["steps"])
    return scheduler


def _precisely(scheduler, settings: dict):
    """The Euler classes call for float32 to be precise, then take almost everything away from latents that are 4096
    times the noise, of which float32 leaves an error of 1e-3. With float64 in its place they are as precise as ever."""
    if settings.get("zero_terminal_snr") and isinstance(scheduler, (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler)):
        return mock.patch.object(torch, "float32", torch.float64)
    return nullcontext()


def _level(scheduler, timestep: torch.Tensor) -> list:
    """What `add_noise` makes of an image that is 1 and of noise that is 1."""
    one, none = torch.ones(1), torch.zeros(1)
    return [_numbers(scheduler.add_noise(image, noise, timestep)[0]) for image, noise in ((one, none), (none, one))]


def _numbers(tensor: torch.Tensor):
    """Float32 in as few digits as bring it back exactly."""
    if tensor.ndim > 0:
        return [_numbers(value) for value in tensor.flatten()]
    if not tensor.is_floating_point():
        return int(tensor)
    return float(str(np.float32(tensor.item())))
