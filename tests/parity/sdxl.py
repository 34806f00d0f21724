"""Stable Diffusion XL as diffusers has it: the architecture's known values, and loading a single file offline."""

import tempfile
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import clip_vocabulary
import sd15

UNET = sd15.UNET | dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    attention_head_dim=(5, 10, 20),  # the number of heads of each level
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    cross_attention_dim=2048,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=1280 + 6 * 256,
    down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
)
OPEN_CLIP = dict(hidden_act="gelu", eos_token_id=2, pad_token_id=0)
VAE = sd15.VAE | dict(sample_size=1024, scaling_factor=0.13025)
TEXT_ENCODER_2 = sd15.TEXT_ENCODER | OPEN_CLIP | dict(
    hidden_size=1280,
    num_attention_heads=20,
    num_hidden_layers=32,
    intermediate_size=5120,
    projection_dim=1280,
)


def load(
    path: Path,
    unet: dict = UNET,
    vae: dict = VAE,
    text_encoder: dict = sd15.TEXT_ENCODER,
    text_encoder_2: dict = TEXT_ENCODER_2,
    dtype: torch.dtype = torch.float32,
) -> StableDiffusionXLPipeline:
    """Loads a single-file checkpoint with diffusers' own map of names, and without its hub."""
    with init_empty_weights():
        empty = StableDiffusionXLPipeline(
            vae=AutoencoderKL(**vae),
            text_encoder=CLIPTextModel(CLIPTextConfig(**text_encoder)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text_encoder_2)),
            tokenizer=clip_vocabulary.tokenizer(),
            tokenizer_2=clip_vocabulary.tokenizer("!"),
            unet=UNet2DConditionModel(**unet),
            scheduler=EulerDiscreteScheduler.from_config(sd15.scheduler().config),
            add_watermarker=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        sd15.save_configs(empty, folder)
        sd15.save_tokenizers(empty, folder)
        diffusers.utils.logging.disable_progress_bar()
        loaded = StableDiffusionXLPipeline.from_single_file(
            str(path), config=folder, local_files_only=True, torch_dtype=dtype, add_watermarker=False
        )
    loaded.vae.register_to_config(force_upcast=dtype != torch.float32)  # as SDXL's own file says
    loaded.set_progress_bar_config(disable=True)
    return loaded
