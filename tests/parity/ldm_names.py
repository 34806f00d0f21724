"""The names of single-file checkpoints, from the names of diffusers and transformers.

Written on its own rather than taken from diffusers, so that loading the file back with
diffusers' own map checks one against the other.
"""

import re
from collections.abc import Collection

import torch

Weights = dict[str, torch.Tensor]

TRAINING_STEPS = 1000

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def checkpoint(unet: Weights, vae: Weights, text_encoder: Weights, levels: int, layers: int) -> Weights:
    """All tensors under their names in the file, in the dtype that they came in.

    `levels`: resolutions of the VAE; `layers`: resnets of a UNet level going down.
    """
    named = {f"model.diffusion_model.{unet_name(k, unet, layers)}": v for k, v in unet.items()}
    for name, value in vae.items():
        ldm = vae_name(name, levels)
        # Self-attention in the VAE was written as convolutions of 1x1.
        if ".attn_1." in ldm and value.ndim == 2:
            value = value[:, :, None, None]
        named[ldm] = value
    for name, value in text_encoder.items():
        inner = name if name.startswith("text_model.") else f"text_model.{name}"
        named[f"cond_stage_model.transformer.{inner}"] = value
    return named


def unet_name(name: str, all_names: Collection[str], layers: int) -> str:
    """Blocks are numbered through: `layers` of them and a downsampler a level, one more going up."""
    module, _, parameter = name.rpartition(".")
    if module in UNET_OUTSIDE:
        return f"{UNET_OUTSIDE[module]}.{parameter}"
    if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = m[1], int(m[2]), m[3]
        place = 2 * index if kind == "resnets" else 2 * index + 1
        return f"middle_block.{place}.{_inside(kind, rest)}"
    m = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    way, level, kind, index, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
        block = f"input_blocks.{1 + level * (layers + 1) + index}"
    else:
        if kind == "upsamplers":
            index = layers
        block = f"output_blocks.{level * (layers + 1) + index}"
        if kind == "upsamplers":  # after the resnet, and after the transformer where there is one
            attends = any(n.startswith(f"up_blocks.{level}.attentions.{layers}.") for n in all_names)
            return f"{block}.{2 if attends else 1}.{rest}"
    return f"{block}.{0 if kind == 'resnets' else 1}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    layer, parameter = rest.split(".")
    return f"{RESNET[layer]}.{parameter}"


def vae_name(name: str, levels: int) -> str:
    """Going up, the original counts levels from the finest."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if m := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)\.(\w+)", name):
        name = f"{m[1]}mid.attn_1.{VAE_ATTENTION[m[2]]}.{m[3]}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    up = lambda m: f"up.{levels - 1 - int(m[1])}."
    name = re.sub(r"up_blocks\.(\d)\.", up, name)
    name = re.sub(r"(up\.\d)\.resnets\.(\d)", r"\1.block.\2", name)
    name = re.sub(r"(up\.\d)\.upsamplers\.0", r"\1.upsample", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    return f"first_stage_model.{name}"


OPEN_CLIP_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_name(name: str) -> str:
    """For a name below `text_model.`; queries, keys and values share one, in this order."""
    if name in OPEN_CLIP_OUTSIDE:
        return OPEN_CLIP_OUTSIDE[name]
    layer, module, parameter = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", name).groups()
    block = f"transformer.resblocks.{layer}"
    if re.fullmatch(r"self_attn\.[qkv]_proj", module):
        return f"{block}.attn.in_proj_{parameter}"
    return f"{block}.{OPEN_CLIP_LAYER[module]}.{parameter}"


def training_buffers(beta_start: float, beta_end: float) -> Weights:
    """What training left in the original files; nothing that draws may depend on it."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    alphas = 1 - betas
    product = alphas.cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), product[:-1]])
    posterior = betas * (1 - before) / (1 - product)
    buffers = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": posterior.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - product),
    }
    return {name: value.float() for name, value in buffers.items()}
