"""Stable Diffusion 1.5 as diffusers has it: the architecture's known values, and loading a single file offline."""

import tempfile
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

import clip_vocabulary

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COMPONENTS = ("unet", "vae", "text_encoder")
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")

UNET = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    attention_head_dim=8,  # in SD1.x this is the number of heads
    cross_attention_dim=768,
    norm_num_groups=32,
    use_linear_projection=False,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
VAE = dict(
    sample_size=512,
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    scaling_factor=0.18215,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TEXT_ENCODER = dict(
    vocab_size=clip_vocabulary.VOCABULARY_SIZE,
    max_position_embeddings=clip_vocabulary.CONTEXT,
    hidden_size=768,
    num_attention_heads=12,
    num_hidden_layers=12,
    intermediate_size=3072,
    hidden_act="quick_gelu",
    projection_dim=768,
    eos_token_id=49407,
)


def assemble(unet: dict, vae: dict, text_encoder: dict) -> StableDiffusionPipeline:
    """A pipeline of those dimensions, with whatever weights the classes begin with."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**vae),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_encoder)),
        tokenizer=clip_vocabulary.tokenizer(),
        unet=UNet2DConditionModel(**unet),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def scheduler() -> DDIMScheduler:
    """What the scheduler file of SD1.5 says, as a DDIM."""
    return DDIMScheduler(
        **BETAS,
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="epsilon",
    )


def load(
    path: Path,
    unet: dict = UNET,
    vae: dict = VAE,
    text_encoder: dict = TEXT_ENCODER,
    dtype: torch.dtype = torch.float32,
) -> StableDiffusionPipeline:
    """Loads a single-file checkpoint with diffusers' own map of names, and without its hub.

    The file must hold every weight of the models, and no other under the models' names.
    """
    if not path.is_file():
        raise SystemExit(f"There is no file {path}.")
    with init_empty_weights():
        empty = assemble(unet, vae, text_encoder)
    with tempfile.TemporaryDirectory() as folder:
        save_configs(empty, folder)
        save_tokenizers(empty, folder)
        diffusers.utils.logging.disable_progress_bar()
        loaded = StableDiffusionPipeline.from_single_file(
            str(path), config=folder, local_files_only=True, torch_dtype=dtype
        )
    _check_complete(loaded, path)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def save_configs(pipeline, folder: str) -> None:
    """What a pipeline's folder holds besides weights and tokenizers, of any family."""
    pipeline.save_config(folder)
    for name, component in pipeline.components.items():
        if name in ("unet", "vae", "scheduler"):
            component.save_config(Path(folder, name))
        elif name.startswith("text_encoder") and component is not None:
            component.config.save_pretrained(Path(folder, name))


def save_tokenizers(pipeline, folder: str) -> None:
    for name, component in pipeline.components.items():
        if name.startswith("tokenizer") and component is not None:
            component.save_pretrained(Path(folder, name))


def _check_complete(pipeline: StableDiffusionPipeline, path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        there = [name for name in file.keys() if name.startswith(PREFIXES) and not name.endswith(".position_ids")]
    weights = [w for component in COMPONENTS for w in getattr(pipeline, component).state_dict().values()]
    missing = sum(weight.is_meta for weight in weights)
    if missing or len(weights) != len(there):
        raise SystemExit(f"{path}: {len(there)} weights, of which {len(weights) - missing} were taken for {len(weights)}")
