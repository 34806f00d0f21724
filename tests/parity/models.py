"""The tiny models of every family: their shapes, and how their recipes come about."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import clip_vocabulary
import ldm_names
import sd15
import sdxl
import tiny
from recipe import Draw, Place, Recipe

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

TEXT_L = tiny.TEXT_ENCODER
TEXT_H = tiny.TEXT_ENCODER | sdxl.OPEN_CLIP
TEXT_G = tiny.TEXT_ENCODER | sdxl.OPEN_CLIP | dict(
    hidden_size=128, num_attention_heads=2, intermediate_size=256, projection_dim=128
)
VAE = tiny.VAE
SDXL_VAE = tiny.VAE | dict(scaling_factor=sdxl.VAE["scaling_factor"])

# `attention_head_dim` is the number of heads of each level, in all of them.
SD2 = tiny.UNET | dict(
    block_out_channels=(64, 64, 128, 128), attention_head_dim=(1, 1, 2, 2), use_linear_projection=True
)
SDXL = sdxl.UNET | dict(
    sample_size=tiny.UNET["sample_size"],
    block_out_channels=(32, 64, 128),
    attention_head_dim=(1, 1, 2),
    transformer_layers_per_block=(1, 1, 2),
    cross_attention_dim=192,
    projection_class_embeddings_input_dim=128 + 6 * 256,
)
# Another depth at every attention, and a middle block of one resnet: SSD-1B's, by half.
SSD = SDXL | dict(
    transformer_layers_per_block=(1, (1, 1), (2, 2)),
    reverse_transformer_layers_per_block=((2, 2, 3), (2, 1, 1), 1),
    mid_block_type="UNetMidBlock2D",
)
REFINER = SDXL | dict(
    block_out_channels=(32, 64, 128, 128),
    attention_head_dim=(1, 1, 2, 2),
    transformer_layers_per_block=2,
    cross_attention_dim=128,
    projection_class_embeddings_input_dim=128 + 5 * 256,
    down_block_types=(PLAIN_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
    up_block_types=(PLAIN_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
)
# BK-SDM-Tiny's: a resnet a level, no middle block, no level without attention.
SMALL = tiny.UNET | dict(
    block_out_channels=(32, 32, 64),
    layers_per_block=1,
    mid_block_type=None,
    down_block_types=(CROSS_DOWN,) * 3,
    up_block_types=(CROSS_UP,) * 3,
)


@dataclass(frozen=True)
class Family:
    """What a model is made of, and the prefixes of its text encoders in a single file."""

    pipeline: type
    scheduler: type
    unet: dict
    vae: dict
    text_encoder: tuple[dict, str] | None = None
    text_encoder_2: tuple[dict, str] | None = None
    # Layers of OpenCLIP that a file has and the pipeline does not.
    leftover_layers: int = 0
    config: tuple[tuple[str, bool], ...] = ()


SD1_TEXT = (TEXT_L, "cond_stage_model.transformer.")
FAMILIES = {
    "sd2": Family(
        StableDiffusionPipeline, DDIMScheduler, SD2, VAE, (TEXT_H, "cond_stage_model.model."), leftover_layers=1
    ),
    "sdxl": Family(
        StableDiffusionXLPipeline, EulerDiscreteScheduler, SDXL, SDXL_VAE,
        (TEXT_L, "conditioner.embedders.0.transformer."), (TEXT_G, "conditioner.embedders.1.model."),
    ),
    "ssd": Family(
        StableDiffusionXLPipeline, EulerDiscreteScheduler, SSD, SDXL_VAE,
        (TEXT_L, "conditioner.embedders.0.transformer."), (TEXT_G, "conditioner.embedders.1.model."),
    ),
    "refiner": Family(
        StableDiffusionXLImg2ImgPipeline, EulerDiscreteScheduler, REFINER, SDXL_VAE,
        text_encoder_2=(TEXT_G, "conditioner.embedders.0.model."),
        config=(("requires_aesthetics_score", True), ("force_zeros_for_empty_prompt", False)),
    ),
    "inpaint": Family(
        StableDiffusionInpaintPipeline, DDIMScheduler, tiny.UNET | dict(in_channels=9), VAE, SD1_TEXT
    ),
    "lcm": Family(
        StableDiffusionPipeline, LCMScheduler, tiny.UNET | dict(time_cond_proj_dim=256), VAE, SD1_TEXT
    ),
    "small": Family(StableDiffusionPipeline, DDIMScheduler, SMALL, VAE, SD1_TEXT),
}


def build(name: str):
    """The pipeline of a family, its weights from its recipe, and the recipe."""
    family = FAMILIES[name]
    pipeline = assemble(family)
    recipe = Recipe()
    for component in components(pipeline):
        for parameter, value in tensors(pipeline, component).items():
            recipe.draws[f"{component}.{parameter}"] = draw(component, parameter, tuple(value.shape))
    for component in components(pipeline):
        assign(pipeline, component, recipe)
    calibrate(pipeline, recipe)
    recipe.places = places(family, pipeline, recipe)
    recipe.configs = configs(pipeline)
    return pipeline, recipe


def assemble(family: Family):
    unet, vae = UNet2DConditionModel(**family.unet), AutoencoderKL(**family.vae)
    parts = dict(unet=unet, vae=vae, scheduler=family.scheduler.from_config(sd15.scheduler().config))
    if issubclass(family.pipeline, (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline)):
        for number, text in (("", family.text_encoder), ("_2", family.text_encoder_2)):
            kind = CLIPTextModelWithProjection if number else CLIPTextModel
            parts[f"text_encoder{number}"] = text and kind(CLIPTextConfig(**text[0]))
            parts[f"tokenizer{number}"] = text and tokenizer(text[0])
        pipeline = family.pipeline(**parts, **dict(family.config), add_watermarker=False)
    else:
        text, _ = family.text_encoder
        parts |= dict(text_encoder=CLIPTextModel(CLIPTextConfig(**text)), tokenizer=tokenizer(text))
        pipeline = family.pipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    for component in components(pipeline):
        getattr(pipeline, component).eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tokenizer(text: dict):
    return clip_vocabulary.tokenizer("!") if text["hidden_act"] == "gelu" else clip_vocabulary.tokenizer()


def components(pipeline) -> list[str]:
    names = ["unet", "vae", "text_encoder", "text_encoder_2"]
    return [name for name in names if getattr(pipeline, name, None) is not None]


def tensors(pipeline, component: str) -> dict[str, torch.Tensor]:
    """The weights of a component under the names of a diffusers folder."""
    there = getattr(pipeline, component).state_dict()
    if component.startswith("text_encoder"):  # newer transformers leave `text_model` out
        whole = ("text_model.", "text_projection.")
        there = {k if k.startswith(whole) else f"text_model.{k}": v for k, v in there.items()}
    return there


def assign(pipeline, component: str, recipe: Recipe) -> None:
    model, made = getattr(pipeline, component), recipe.component(component)
    named = dict(zip(tensors(pipeline, component), model.state_dict(), strict=True))
    model.load_state_dict({named[name]: value for name, value in made.items()})


def draw(component: str, name: str, shape: tuple[int, ...]) -> Draw:
    """Outputs as wide as inputs; norms and biases far enough from 1 and 0 that leaving one out shows."""
    if "embedding.weight" in name:
        return Draw(shape, 0, 0.1 if "position" in name else 0.5)
    if len(shape) >= 2:
        smooth = component == "vae" and name.startswith("decoder.") and shape[2:] == (3, 3)
        return Draw(shape, 0, rounded(shape[0:1] and torch.Size(shape[1:]).numel() ** -0.5), smooth)
    return Draw(shape, 1 if name.endswith("weight") else 0, 0.2)


def rounded(number: float) -> float:
    return float(f"{number:.3g}")


def calibrate(pipeline, recipe: Recipe) -> None:
    """Noise of deviation 1 from the UNet, colours well spread from the VAE, latents of some width into it."""
    generator = torch.Generator().manual_seed(0)
    unet, vae = pipeline.unet, pipeline.vae
    latents = torch.randn(4, unet.config.in_channels, 16, 16, generator=generator)
    context = torch.randn(4, 77, unet.config.cross_attention_dim, generator=generator)
    added = None
    if unet.config.addition_embed_type:
        ids = torch.tensor([[128.0, 128, 0, 0, 6] + [128] * (pipeline.text_encoder is not None)] * 4)
        added = dict(text_embeds=torch.randn(4, 128, generator=generator), time_ids=ids)
    noise = unet(latents, torch.tensor(500), encoder_hidden_states=context, added_cond_kwargs=added).sample
    image = vae.decode(latents[:, :4] * 5).sample
    encoded = vae.encode(image.clamp(-1, 1)).latent_dist.parameters
    rescale(recipe, "unet.conv_out", noise, 1)
    rescale(recipe, "vae.decoder.conv_out", image, 0.5)
    rescale(recipe, "vae.quant_conv", encoded, 2.5)
    # Variances of a trained encoder are small.
    recipe.draws["vae.quant_conv.bias"].mean = -3
    assign(pipeline, "unet", recipe)
    assign(pipeline, "vae", recipe)


def rescale(recipe: Recipe, module: str, output: torch.Tensor, deviation: float) -> None:
    weight = recipe.draws[f"{module}.weight"]
    weight.std = rounded(weight.std * deviation / output.std().item())


def places(family: Family, pipeline, recipe: Recipe) -> list[Place]:
    """The single file."""
    found: dict[str, Place] = {}

    def put(canonical: str, file: str, how: str = "same") -> None:
        there = found.setdefault(file, Place(file, how, []))
        there.sources.append(canonical)

    unet = tensors(pipeline, "unet")
    for name in unet:
        file = ldm_names.unet_name(name, unet, family.unet["layers_per_block"])
        put(f"unet.{name}", f"model.diffusion_model.{file}")
    vae_places(recipe, put)
    for component in ("text_encoder", "text_encoder_2"):
        if text := getattr(family, component):
            text_places(component, *text, family.leftover_layers, recipe, put)
    return list(found.values())


def vae_places(recipe: Recipe, put) -> None:
    for canonical, drawn in recipe.draws.items():
        component, name = canonical.split(".", 1)
        if component == "vae":
            file = ldm_names.vae_name(name, len(VAE["block_out_channels"]))
            # Self-attention in the VAE was written as convolutions of 1x1.
            put(canonical, file, "pixel" if ".attn_1." in file and len(drawn.shape) == 2 else "same")


def text_places(component: str, config: dict, prefix: str, leftover_layers: int, recipe: Recipe, put) -> None:
    if prefix.endswith("transformer."):
        for canonical in recipe.draws:
            if canonical.startswith(f"{component}."):
                put(canonical, prefix + canonical.removeprefix(f"{component}."))
        return
    if leftover_layers:
        add_leftovers(component, config, leftover_layers, recipe)
    # In the order in which the file joins queries, keys and values.
    for canonical in sorted(recipe.draws, key=lambda name: "kv".find(name.split("_proj.")[0][-1])):
        owner, name = canonical.split(".", 1)
        if owner not in (component, f"leftover_{component}"):
            continue
        if name == "text_projection.weight":
            put(canonical, f"{prefix}text_projection", "transpose")
        elif name == "logit_scale":
            put(canonical, f"{prefix}logit_scale")
        else:
            file = ldm_names.open_clip_name(name.removeprefix("text_model."))
            put(canonical, prefix + file, "join" if ".in_proj_" in file else "same")


def add_leftovers(component: str, config: dict, layers: int, recipe: Recipe) -> None:
    """What SD2's files have of OpenCLIP beyond the layers that it is used with."""
    last = f"{component}.text_model.encoder.layers.{config['num_hidden_layers'] - 1}."
    for canonical, drawn in list(recipe.draws.items()):
        if canonical.startswith(last):
            for extra in range(layers):
                layer = config["num_hidden_layers"] + extra
                name = f"text_model.encoder.layers.{layer}.{canonical.removeprefix(last)}"
                recipe.draws[f"leftover_{component}.{name}"] = drawn
    width = config["hidden_size"]
    recipe.draws[f"leftover_{component}.text_projection.weight"] = Draw((width, width), 0, rounded(width**-0.5))
    recipe.draws[f"leftover_{component}.logit_scale"] = Draw((), 4.6, 0)


def vae_alone(recipe: Recipe) -> Recipe:
    """The autoencoder of a model in a file of its own, without the prefix that it has in a checkpoint."""
    prefix = "first_stage_model."
    return Recipe(
        draws={name: drawn for name, drawn in recipe.draws.items() if name.startswith("vae.")},
        places=[Place(p.file.removeprefix(prefix), p.how, p.sources) for p in recipe.places if p.file.startswith(prefix)],
        configs={path: config for path, config in recipe.configs.items() if path.startswith("vae/")},
    )


def configs(pipeline) -> dict[str, dict]:
    """The folder's JSON files but for the tokenizers'."""
    with tempfile.TemporaryDirectory() as scratch:
        sd15.save_configs(pipeline, scratch)
        return {
            str(path.relative_to(scratch)): json.loads(path.read_text())
            for path in sorted(Path(scratch).rglob("*.json"))
            if "generation" not in path.name
        }


def check_reads_back(name: str, pipeline, recipe: Recipe) -> None:
    """Loads the single file with diffusers' own map of names; every weight must be the one that was drawn."""
    if pipeline.unet.config.time_cond_proj_dim is not None:
        return  # which that map has no name for
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "single.safetensors")
        # What is left over, diffusers leaves out by the real files' own names.
        leftovers = {p.file for p in recipe.places if ".resblocks." in p.file and p.sources[0].startswith("leftover_")}
        save_file({name: value for name, value in recipe.single_file().items() if name not in leftovers}, path)
        sd15.save_configs(pipeline, scratch)
        sd15.save_tokenizers(pipeline, scratch)
        diffusers.utils.logging.disable_progress_bar()
        loaded = type(pipeline).from_single_file(
            str(path), config=scratch, local_files_only=True, torch_dtype=torch.float32
        )
    for component in components(pipeline):
        ours, theirs = tensors(pipeline, component), tensors(loaded, component)
        assert ours.keys() == theirs.keys(), (name, component)
        for weight, value in ours.items():
            assert torch.equal(value, theirs[weight]), f"{name}: {component}.{weight}"
