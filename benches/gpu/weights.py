"""Checkpoints of random weights in the true shapes of SD1.5 and SDXL, fp16 in a single file under the original names, and
LoRAs for them as kohya's trainer names things; made on the card, in seconds.

The shapes are diffusers' own for the configurations of tests/parity/sd15.py and sdxl.py, the names those of tests/parity/
models.py. Widths of the numbers are those of examples/random_checkpoint: outputs as wide as inputs, branches a third of it.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

import models
import recipe
import sd15
import sdxl

FAMILIES = {
    "sd15": models.Family(
        StableDiffusionPipeline, DDIMScheduler, sd15.UNET, sd15.VAE,
        (sd15.TEXT_ENCODER, "cond_stage_model.transformer."),
    ),
    "sdxl": models.Family(
        StableDiffusionXLPipeline, EulerDiscreteScheduler, sdxl.UNET, sdxl.VAE,
        (sd15.TEXT_ENCODER, "conditioner.embedders.0.transformer."),
        (sdxl.TEXT_ENCODER_2, "conditioner.embedders.1.model."),
    ),
}  # fmt: skip
# The last layer of a branch that is added to its own input.
BRANCH_ENDS = ("proj_out", "to_out.0", "ff.net.2", "conv2", "out_proj", "mlp.fc2")
RANK = 16
BASES = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}


def tiny(family: str) -> dict[str, dict]:
    """The configurations of the small models of a dry run, as `sd15.load` and `sdxl.load` take them.

    SD1.5's is in models/demo. SDXL's there has two text encoders of one width, by which diffusers tells them apart: here it is
    that of the tests, which `write` makes.
    """
    if family == "sd15":
        import base
        import vae

        text = sd15.TEXT_ENCODER | base.TEXT_ENCODER
        return dict(unet=base.UNET, vae=vae.VAE | dict(scaling_factor=sd15.VAE["scaling_factor"]), text_encoder=text)
    return dict(unet=models.SDXL, vae=models.SDXL_VAE, text_encoder=models.TEXT_L, text_encoder_2=models.TEXT_G)


def write(family: str, out: Path, lora: Path, device: torch.device) -> None:
    """A checkpoint, and a LoRA for all attention of its UNet."""
    plan, tensors = planned(family), {}
    for place in plan.places:
        drawn = [normal(source, plan.draws[source], device) for source in place.sources]
        tensors[place.file] = recipe.placed(place.how, drawn).contiguous().cpu()
    save_file(tensors, out, metadata={"format": "pt"})
    write_lora(family, plan, lora, device)


def write_tiny(family: str, out: Path, lora: Path) -> None:
    """The same of the tests' model of that family."""
    _, plan = models.build(family)
    save_file({name: value.half() for name, value in plan.single_file().items()}, out, metadata={"format": "pt"})
    write_lora(family, plan, lora, torch.device("cpu"))


def write_lora(family: str, plan: recipe.Recipe, out: Path, device: torch.device) -> None:
    adapters = {}
    for place in plan.places:
        if place.file.startswith("model.diffusion_model.") and re.search(r"\.attn[12]\..*\.weight$", place.file):
            adapters |= adapter(family, place.file, place.sources[0], plan.draws[place.sources[0]].shape, device)
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(RANK), "ss_network_alpha": str(RANK / 2)}
    save_file(adapters, out, metadata={"ss_base_model_version": BASES[family], **network})


def planned(family: str) -> recipe.Recipe:
    """Names, shapes and widths; no numbers yet."""
    with init_empty_weights():
        pipeline = models.assemble(FAMILIES[family])
    plan = recipe.Recipe()
    for component in models.components(pipeline):
        for name, value in models.tensors(pipeline, component).items():
            plan.draws[f"{component}.{name}"] = draw(name, tuple(value.shape))
    plan.places = models.places(FAMILIES[family], pipeline, plan)
    return plan


def draw(name: str, shape: tuple[int, ...]) -> recipe.Draw:
    module, _, parameter = name.rpartition(".")
    if module.endswith("embedding") and parameter == "weight" and len(shape) == 2 and "time" not in module:
        return recipe.Draw(shape, 0, 0.1 if "position" in module else 0.5)
    if len(shape) < 2:
        return recipe.Draw(shape, 1 if parameter == "weight" else 0, 0.05)
    gain = 0.3 if module.endswith(BRANCH_ENDS) else 1
    return recipe.Draw(shape, 0, gain * torch.Size(shape[1:]).numel() ** -0.5)


def normal(name: str, draw: recipe.Draw, device: torch.device) -> torch.Tensor:
    """The same for a name in every run on a device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(draw.shape, generator=generator, device=device)
    return (draw.mean + draw.std * noise).half()


def adapter(family: str, file: str, canonical: str, shape: tuple[int, ...], device: torch.device) -> dict[str, torch.Tensor]:
    """What it adds is a twentieth as wide as what the layer gives by itself."""
    # The trainer holds SD1.x as diffusers does, and SDXL as the original file has it.
    module = canonical.removeprefix("unet.") if family == "sd15" else file.removeprefix("model.diffusion_model.")
    name = "lora_unet_" + module.removesuffix(".weight").replace(".", "_")
    outputs, inputs = shape
    down = normal(f"{name}.down", recipe.Draw((RANK, inputs), 0, inputs**-0.5), device)
    up = normal(f"{name}.up", recipe.Draw((outputs, RANK), 0, 0.1 / RANK**0.5), device)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(RANK / 2).half()}
    return {f"{name}.{part}": value.cpu() for part, value in parts.items()}
