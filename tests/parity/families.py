"""Whole images of every family, drawn by the pipelines of diffusers, and the stages where faults hide."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

import images
import prompting
import schedulers

PROMPT = "a red fox in the snow, golden hour"
NEGATIVE_PROMPT = "blurry, low quality"
LONG_PROMPT = ", ".join(["a red fox in the snow", "golden hour", "wide angle", "mountains and pines behind it"] * 5)
WEIGHTED_PROMPT = "a (red:1.4) fox in the [snow], ((golden)) hour"
WEIGHTED_SEGMENTS = [
    ("a ", 1), ("red", 1.4), (" fox in the ", 1), ("snow", 1 / 1.1), (", ", 1), ("golden", 1.1 * 1.1), (" hour", 1)
]  # fmt: skip
WEIGHTED_NEGATIVE = "blurry, (low quality:0.6)"
WEIGHTED_NEGATIVE_SEGMENTS = [("blurry, ", 1), ("low quality", 0.6)]
SEGMENTS = {WEIGHTED_PROMPT: WEIGHTED_SEGMENTS, WEIGHTED_NEGATIVE: WEIGHTED_NEGATIVE_SEGMENTS}

ZERO_SNR = dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
# Whose autoencoder stands in a file of its own.
VAE_OWNER = "small"
PICTURES = [(64, 64), (96, 64), (72, 104)]


def request(file: str, model: str, **more) -> dict:
    """The words of the manifest; all but the first block are those of a request."""
    defaults = dict(
        model=model,
        # "single": one file; "folder": as diffusers saves it.
        layout="single",
        # Of its own: "single", "folder" or "renamed", which is one file with diffusers' names.
        vae=None,
        # What the folder's scheduler file says beyond the recipe's.
        scheduler_config={},
        prediction=None,
        prompt=PROMPT,
        negative_prompt=NEGATIVE_PROMPT,
        width=64,
        height=64,
        steps=4,
        guidance_scale=7.0,
        guidance_rescale=0.0,
        n=1,
        seed=42,
        scheduler="euler" if model in ("sdxl", "ssd", "refiner") else "ddim",
        timestep_spacing=None,
        eta=0.0,
        clip_skip=0,
        long_prompts="cut",
        prompt_syntax="plain",
        init_image=None,
        mask_image=None,
        denoise_strength=None,
    )
    unknown = more.keys() - defaults.keys()
    assert not unknown, unknown
    return {"file": f"{file}.png"} | defaults | more


def requests() -> list[dict]:
    return [*_schedulers(), *_stable_diffusion(), *_sdxl(), *_over_an_image(), *_prompts(), *_layouts()]


def _schedulers() -> list[dict]:
    """Those that images.py draws with once: where they begin in the middle."""
    others = [id for id in schedulers.SCHEDULERS if id not in images.EVERY_WAY]
    picture = dict(init_image="init-64x64.png", denoise_strength=0.5)
    masked = dict(picture, mask_image="mask-64x64.png")
    return [
        *(request(f"img2img-{id}", "tiny-sd15", scheduler=id, steps=6, **picture) for id in others),
        *(request(f"inpaint4-{id}", "tiny-sd15", scheduler=id, steps=6, **masked) for id in others + ["lcm"]),
    ]


def _stable_diffusion() -> list[dict]:
    v = dict(prediction="v")
    zero_snr = dict(layout="folder", scheduler_config=ZERO_SNR)
    return [
        request("sd2-epsilon", "sd2", prediction="epsilon"),
        request("sd2-epsilon-96x64", "sd2", prediction="epsilon", width=96, scheduler="dpmpp_2m", guidance_scale=1.0),
        request("sd2-epsilon-skip1", "sd2", prediction="epsilon", clip_skip=1),
        *(request(f"sd2-v-{id}", "sd2", **v, scheduler=id) for id in ("ddim", "euler", "euler_a", "dpmpp_2m", "lcm")),
        request("sd2-v-128x128-no-negative", "sd2", **v, width=128, height=128, negative_prompt=None),
        request("sd2-zero-snr-ddim", "sd2", **zero_snr, guidance_rescale=0.7),
        request("sd2-zero-snr-euler", "sd2", **zero_snr, scheduler="euler"),
        request("sd15-rescale", "tiny-sd15", guidance_rescale=0.7, guidance_scale=7.5),
        request("sd15-eta", "tiny-sd15", eta=0.8),
        request("sd15-trailing", "tiny-sd15", timestep_spacing="trailing", scheduler="euler"),
        request("sd15-batch", "tiny-sd15", n=2, scheduler="euler_a", seed=2**32 - 1),
        request("small", "small"),
        request("lcm-96x64", "lcm", scheduler=None, guidance_scale=8.5, width=96),
        request("lcm-scale-1", "lcm", scheduler="lcm", guidance_scale=1.0, n=2),
    ]


def _sdxl() -> list[dict]:
    turbo = dict(scheduler="euler_a", timestep_spacing="trailing", guidance_scale=0.0, negative_prompt=None)
    return [
        request("sdxl", "sdxl", scheduler=None),
        request("sdxl-no-negative", "sdxl", negative_prompt=None),
        request("sdxl-empty-negative", "sdxl", negative_prompt=""),
        request("sdxl-unguided-96x64", "sdxl", guidance_scale=1.0, width=96),
        request("sdxl-72x104", "sdxl", width=72, height=104),
        request("sdxl-skip1", "sdxl", clip_skip=1),
        *(request(f"sdxl-{id}", "sdxl", scheduler=id) for id in ("ddim", "euler_a", "dpmpp_2m_karras", "lcm")),
        request("sdxl-v", "sdxl", prediction="v"),
        request("sdxl-rescale", "sdxl", guidance_rescale=0.7, n=2),
        request("sdxl-turbo-1", "sdxl", **turbo, steps=1),
        request("sdxl-turbo-2", "sdxl", **turbo, steps=2),
        request("ssd", "ssd"),
        request("ssd-no-negative-96x64", "ssd", negative_prompt=None, width=96),
    ]


def _over_an_image() -> list[dict]:
    def over(file: str, model: str, strength: float, masked: bool = False, **more) -> dict:
        size = f"{more.get('width', 64)}x{more.get('height', 64)}"
        mask = dict(mask_image=f"mask-{size}.png") if masked else {}
        return request(file, model, init_image=f"init-{size}.png", denoise_strength=strength, **mask, **more)

    return [
        *(
            over(f"img2img-{id}-{strength}", "tiny-sd15", strength, scheduler=id, steps=10)
            for id in ("ddim", "euler", "dpmpp_2m", "lcm")
            for strength in (0.3, 0.7)
        ),
        over("img2img-euler_a-1.0", "tiny-sd15", 1.0, scheduler="euler_a"),
        over("img2img-72x104", "tiny-sd15", 0.5, width=72, height=104),
        over("img2img-batch", "tiny-sd15", 0.6, n=2, steps=5),
        over("img2img-sd2-v", "sd2", 0.6, steps=5, prediction="v"),
        over("img2img-sdxl", "sdxl", 0.6, steps=5, width=96),
        over("img2img-sdxl-rescale", "sdxl", 0.6, steps=5, guidance_rescale=0.7, negative_prompt=None),
        over("refiner", "refiner", 0.6, steps=5),
        over("refiner-no-negative-96x64", "refiner", 0.3, steps=10, negative_prompt=None, width=96),
        over("refiner-unguided", "refiner", 0.6, steps=5, guidance_scale=1.0),
        *(
            over(f"inpaint4-{id}-{strength}", "tiny-sd15", strength, masked=True, scheduler=id, steps=5)
            for id in ("ddim", "euler", "dpmpp_2m", "euler_a")
            for strength in (0.6, 1.0)
        ),
        over("inpaint4-72x104", "tiny-sd15", 0.7, masked=True, width=72, height=104),
        over("inpaint9-ddim-1.0", "inpaint", 1.0, masked=True),
        over("inpaint9-ddim-0.6", "inpaint", 0.6, masked=True, steps=5),
        over("inpaint9-euler_a-96x64", "inpaint", 1.0, masked=True, scheduler="euler_a", width=96, guidance_scale=1.0),
        over("inpaint-sdxl-0.6", "sdxl", 0.6, masked=True, steps=5),
        over("inpaint-sdxl-1.0-96x64", "sdxl", 1.0, masked=True, width=96, negative_prompt=None),
    ]


def _prompts() -> list[dict]:
    chunk, weighted = dict(long_prompts="chunk"), dict(prompt_syntax="weighted")
    weights = dict(weighted, prompt=WEIGHTED_PROMPT, negative_prompt=WEIGHTED_NEGATIVE)
    both = dict(prompt=f"{WEIGHTED_PROMPT}, {LONG_PROMPT}", negative_prompt=WEIGHTED_NEGATIVE)
    return [
        request("prompt-cut", "tiny-sd15", prompt=LONG_PROMPT),
        request("prompt-chunk", "tiny-sd15", **chunk, prompt=LONG_PROMPT),
        request("prompt-chunk-negative", "tiny-sd15", **chunk, negative_prompt=LONG_PROMPT),
        request("prompt-chunk-unguided-96x64", "tiny-sd15", **chunk, prompt=LONG_PROMPT, guidance_scale=1.0, width=96),
        request("prompt-chunk-sd2", "sd2", **chunk, prompt=LONG_PROMPT, prediction="v"),
        request("prompt-chunk-sdxl", "sdxl", **chunk, prompt=LONG_PROMPT),
        request("prompt-chunk-sdxl-no-negative", "sdxl", **chunk, prompt=LONG_PROMPT, negative_prompt=None),
        request("prompt-weighted", "tiny-sd15", **weights),
        request("prompt-weighted-sd2", "sd2", **weights, prediction="v"),
        request("prompt-weighted-sdxl", "sdxl", **weights),
        request("prompt-weighted-chunk", "tiny-sd15", **chunk, **weighted, **both),
    ]


def _layouts() -> list[dict]:
    """What must give an image that is there already, or the same one from several files."""
    own = [request("sd15-vae", "tiny-sd15", vae=layout) for layout in ("single", "folder", "renamed", "model")]
    picture = dict(init_image="init-64x64.png")
    masked = dict(picture, mask_image="mask-64x64.png", denoise_strength=1.0)
    folders = [
        request("sdxl", "sdxl", layout="folder", scheduler=None),
        request("small", "small", layout="folder"),
        request("lcm-96x64", "lcm", layout="folder", scheduler=None, guidance_scale=8.5, width=96),
        request("inpaint9-ddim-1.0", "inpaint", layout="folder", **masked),
        request("refiner", "refiner", layout="folder", steps=5, **picture, denoise_strength=0.6),
        request("ssd", "ssd", layout="folder"),
    ]
    return own + folders


def draw(models: dict, wanted: dict, folder: Path) -> None:
    """Writes the image, or the images one below the other."""
    base = models[wanted["model"]]
    pipeline = _pipeline(base, wanted)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(base, wanted)
    own_vae = pipeline.vae
    if wanted["vae"]:
        pipeline.vae = models[VAE_OWNER].vae
    arguments = dict(
        num_inference_steps=wanted["steps"],
        guidance_scale=wanted["guidance_scale"],
        eta=wanted["eta"],
        num_images_per_prompt=wanted["n"],
        generator=[torch.Generator("cpu").manual_seed(wanted["seed"] + i) for i in range(wanted["n"])],
        **_prompt(pipeline, wanted),
    )
    if wanted["guidance_rescale"]:
        arguments |= dict(guidance_rescale=wanted["guidance_rescale"])
    if wanted["init_image"]:
        arguments |= dict(image=Image.open(folder / wanted["init_image"]), strength=wanted["denoise_strength"])
    if wanted["mask_image"]:
        arguments |= dict(mask_image=Image.open(folder / wanted["mask_image"]))
    if wanted["mask_image"] or not wanted["init_image"]:
        arguments |= dict(width=wanted["width"], height=wanted["height"])
    drawn = pipeline(**arguments, output_type="np").images
    pipeline.vae = own_vae
    assert drawn.shape[1:3] == (wanted["height"], wanted["width"]), wanted["file"]
    clipped = ((drawn <= 0) | (drawn >= 1)).mean()
    assert clipped < 0.2, f"{wanted['file']}: {clipped:.0%} of it is black or white"
    Image.fromarray(np.concatenate((drawn * 255).round().astype("uint8"))).save(folder / wanted["file"], optimize=True)


def _pipeline(base, wanted: dict):
    sdxl = isinstance(base, (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline))
    kinds = (
        (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline)
        if sdxl
        else (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)
    )
    kind = kinds[bool(wanted["init_image"]) + bool(wanted["mask_image"])]
    if isinstance(base, kind):
        return base
    if not sdxl:
        return kind(**base.components, requires_safety_checker=False)
    return kind(
        **base.components, force_zeros_for_empty_prompt=base.config.force_zeros_for_empty_prompt, add_watermarker=False
    )


def _scheduler(base, wanted: dict):
    default = "lcm" if wanted["model"] == "lcm" else "euler" if hasattr(base, "text_encoder_2") else "ddim"
    kind, settings = schedulers.SCHEDULERS[wanted["scheduler"] or default]
    prediction = {None: {}, "epsilon": {}, "v": dict(prediction_type="v_prediction")}[wanted["prediction"]]
    spacing = dict(timestep_spacing=wanted["timestep_spacing"]) if wanted["timestep_spacing"] else {}
    return kind(**(settings | wanted["scheduler_config"] | prediction | spacing))


def _prompt(pipeline, wanted: dict) -> dict:
    if wanted["long_prompts"] == "cut" and wanted["prompt_syntax"] == "plain":
        # None is the pipeline's own way of saying 0, which must be the same.
        return dict(
            prompt=wanted["prompt"], negative_prompt=wanted["negative_prompt"], clip_skip=wanted["clip_skip"] or None
        )
    prompts = [_segments(wanted["prompt"], wanted["prompt_syntax"])]
    if wanted["guidance_scale"] > 1:
        negative = wanted["negative_prompt"]
        if negative is None and not pipeline.config.get("force_zeros_for_empty_prompt"):
            negative = ""
        prompts.append(None if negative is None else _segments(negative, wanted["prompt_syntax"]))
    return prompting.embeddings(pipeline, *prompts, chunk=wanted["long_prompts"] == "chunk")


def _segments(prompt: str, syntax: str) -> list[tuple[str, float]]:
    """Written down by hand, so that the reference needs no parser."""
    if syntax == "plain":
        return [(prompt, 1.0)]
    for written, segments in SEGMENTS.items():
        if prompt.startswith(written):
            return segments + [(prompt.removeprefix(written), 1.0)]
    raise AssertionError(prompt)


def pictures(folder: Path) -> None:
    """What images are drawn over, and masks whose edges are neither sharp nor at multiples of 8."""
    for width, height in PICTURES:
        y, x = np.mgrid[0:height, 0:width]
        disc = np.hypot(x - 0.6 * width, y - 0.4 * height) < 0.3 * height
        channels = [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)]
        rgb = np.stack([np.where(disc, 255 - c, c) for c in channels], axis=-1).round().astype("uint8")
        Image.fromarray(rgb).save(folder / f"init-{width}x{height}.png", optimize=True)
        edge = (np.hypot(x - 0.45 * width, y - 0.55 * height) - 0.33 * height) / 6
        grey = (255 / (1 + np.exp(edge))).round().astype("uint8")
        Image.fromarray(grey).save(folder / f"mask-{width}x{height}.png", optimize=True)


def stages(models: dict, folder: Path) -> dict[str, torch.Tensor]:
    """Text embeddings, a UNet step on them, and what the VAE's encoder says of a picture."""
    found = {}
    for name in ("sd2", "sdxl", "refiner"):
        pipeline = models[name]
        added = None
        if name == "sd2":
            context, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
        else:
            context, _, pooled, _ = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
            ids = [64.0, 96, 0, 0, 64, 96] if name == "sdxl" else [64.0, 96, 0, 0, 6]
            added = dict(text_embeds=pooled, time_ids=torch.tensor([ids]))
            found |= {f"{name}.pooled": pooled, f"{name}.time_ids": added["time_ids"]}
        latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
        out = pipeline.unet(latents, torch.tensor(601), encoder_hidden_states=context, added_cond_kwargs=added).sample
        found |= {f"{name}.context": context, f"{name}.latents": latents, f"{name}.out": out}
    for width, height in PICTURES:
        picture = np.asarray(Image.open(folder / f"init-{width}x{height}.png"))
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255 * 2 - 1
        found[f"tiny-sd15.{width}x{height}.moments"] = models["tiny-sd15"].vae.encode(image).latent_dist.parameters
    return {name: value.contiguous() for name, value in found.items()}
