"""LoRAs of every spelling and algorithm, as recipes, and what the reference makes of them.

A file is a recipe of its tensors (`recipe.Draw`, seeded with the tensor's name in the file). Images are drawn by diffusers
with `load_lora_weights`; where it refuses a LoRA or leaves out a part, LyCORIS' own arithmetic makes the weights that the
image is drawn with. `WEIGHTS` are single weights, against LyCORIS and PEFT.
"""

import copy
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import peft
import torch
from lycoris.functional import locon, loha, lokr
from lycoris.functional.general import apply_dora_scale, weight_decompose
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel

import schedulers
from recipe import Draw

PROMPT = "a red fox in the snow, golden hour"
# An image with a LoRA must differ from the one without by more than this; a test that it passes would show nothing.
MAX_PSNR_WITHOUT_DB = 30
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Lora:
    tensors: dict[str, Draw]
    metadata: dict[str, str] = field(default_factory=dict)
    dtype: str = "F32"

    def values(self) -> dict[str, torch.Tensor]:
        return {name: draw.values(name).to(DTYPES[self.dtype]) for name, draw in self.tensors.items()}

    def row(self) -> dict:
        tensors = [[name, draw.shape, draw.mean, draw.std] for name, draw in self.tensors.items()]
        return dict(tensors=tensors, metadata=self.metadata, dtype=self.dtype)


def number(value: float) -> Draw:
    return Draw((), value, 0.0)


def low_rank(shape: torch.Size, rank: int, down: str, up: str, strength: float = 0.8) -> dict[str, Draw]:
    """A change of about that part of a weight as these models have it."""
    n, c, *kernel = shape
    std = (strength / math.sqrt(math.prod(shape[1:]) * rank)) ** 0.5
    ones = [1] * len(kernel)
    return {down: Draw((rank, c, *kernel), 0.0, std), up: Draw((n, rank, *ones), 0.0, std)}


# --- Files of each spelling -----------------------------------------------------------------------------------------

ATTENTION = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"]
PROJECTIONS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
BLOCK = "transformer_blocks.0"
TRANSFORMERS = ["down_blocks.0.attentions.1", "mid_block.attentions.0", "up_blocks.2.attentions.0"]


def attention(blocks: list[str], parts: list[str]) -> list[str]:
    return [f"{block}.{BLOCK}.{part}" for block in blocks for part in parts]


def text(layers: int) -> list[str]:
    return [f"text_model.encoder.layers.{layer}.{part}" for layer in range(layers) for part in PROJECTIONS]


def kohya(pipeline) -> Lora:
    """Diffusers' blocks with underscores, as kohya's trainer writes SD1.x; ranks and alphas differ.

    Not the alphas of attention layers and text encoders, though: diffusers 0.42 loses those that are not the commonest.
    """
    unet = attention(TRANSFORMERS, [*ATTENTION, "ff.net.0.proj", "ff.net.2"]) + [
        "down_blocks.0.attentions.1.proj_in",
        "down_blocks.0.attentions.1.proj_out",
        "down_blocks.1.resnets.1.conv1",
        "down_blocks.1.downsamplers.0.conv",
        "up_blocks.1.resnets.0.conv_shortcut",
        "up_blocks.1.upsamplers.0.conv",
    ]
    tensors = {}
    for index, (module, shape) in enumerate(_shapes(pipeline, unet, text(2))):
        name = module.removeprefix("unet.").removeprefix("text_encoder.").replace(".", "_")
        name = f"lora_unet_{name}" if module.startswith("unet.") else f"lora_te_{name}"
        tensors |= low_rank(shape, 4 - index % 2, f"{name}.lora_down.weight", f"{name}.lora_up.weight")
        is_uniform = "attn" in module or module.startswith("text_encoder.")
        tensors[f"{name}.alpha"] = number(2.0 if is_uniform else 1.0 + index % 3)
    return Lora(tensors, {"ss_base_model_version": "sd_v1"}, "F16")


# Places in the original files, and which of diffusers' modules they are.
ORIGINAL = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_2_1_proj_in": "down_blocks.0.attentions.1.proj_in",
    "input_blocks_4_0_in_layers_2": "down_blocks.1.resnets.0.conv1",
    "input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks_7_0_skip_connection": "up_blocks.2.resnets.1.conv_shortcut",
    "out_2": "conv_out",
} | {
    f"{file}_1_transformer_blocks_0_{part.replace('.', '_')}": f"{block}.{BLOCK}.{part}"
    for file, block in [
        ("input_blocks_4", "down_blocks.1.attentions.0"),
        ("middle_block", "mid_block.attentions.0"),
        ("output_blocks_8", "up_blocks.2.attentions.2"),
    ]
    for part in [*ATTENTION, "ff.net.0.proj", "ff.net.2"]
}


def kohya_original(pipeline) -> Lora:
    """The original files' blocks with underscores."""
    shapes = dict(_shapes(pipeline, list(ORIGINAL.values()), []))
    tensors = {}
    for file, module in ORIGINAL.items():
        name, strength = f"lora_unet_{file}", 0.2 if file in ("input_blocks_0_0", "out_2") else 0.8
        shape = shapes[f"unet.{module}"]
        tensors |= low_rank(shape, 2, f"{name}.lora_down.weight", f"{name}.lora_up.weight", strength)
        tensors[f"{name}.alpha"] = number(1.0)
    return Lora(tensors)


def of_peft(pipeline) -> Lora:
    """What diffusers' `save_lora_weights` writes today, alpha in the metadata; with convolutions."""
    unet = attention(TRANSFORMERS, ATTENTION) + [
        "conv_in",
        "time_embedding.linear_1",
        "down_blocks.2.resnets.0.conv2",
        "down_blocks.2.resnets.0.time_emb_proj",
        "up_blocks.2.attentions.0.proj_in",
    ]
    tensors, components, targets = {}, {}, {"unet": [], "text_encoder": []}
    for module, shape in _shapes(pipeline, unet, text(3)):
        strength = 0.3 if module == "unet.conv_in" else 0.8
        tensors |= low_rank(shape, 4, f"{module}.lora_A.weight", f"{module}.lora_B.weight", strength)
        component, name = module.split(".", 1)
        targets[component].append(name.removeprefix("text_model."))
    for component, names in targets.items():
        patterns = {name: 6 for name in names if name.endswith(("to_q", "conv_in", "fc1"))}
        config = dict(r=4, lora_alpha=2, alpha_pattern=patterns, rank_pattern={}, target_modules=names)
        components |= {f"{component}.{key}": value for key, value in config.items()}
    return Lora(tensors, {"lora_adapter_metadata": json.dumps(components, sort_keys=True)}, "BF16")


def of_old_diffusers(pipeline) -> Lora:
    """`processor.to_q_lora` and `lora_linear_layer`, with no alpha at all."""
    tensors = {}
    for module, shape in _shapes(pipeline, attention(TRANSFORMERS, ATTENTION), text(3)):
        head, last = module.removesuffix(".0").rsplit(".", 1)
        if module.startswith("unet."):
            stem = f"{head}.processor.{last}_lora"
        else:
            stem = f"{module}.lora_linear_layer"
        tensors |= low_rank(shape, 3, f"{stem}.down.weight", f"{stem}.up.weight", 0.5)
    return Lora(tensors)


def dora_of_peft(pipeline) -> Lora:
    """DoRA as diffusers takes it (for the UNet alone): PEFT's magnitudes, those of convolutions as [1, n, 1, 1]."""
    tensors = {}
    for module, shape in _shapes(pipeline, attention(TRANSFORMERS, ATTENTION) + ["down_blocks.1.resnets.0.conv1"], []):
        tensors |= low_rank(shape, 4, f"{module}.lora_A.weight", f"{module}.lora_B.weight")
        magnitudes = (shape[0],) if len(shape) == 2 else (1, shape[0], 1, 1)
        tensors[f"{module}.lora_magnitude_vector"] = Draw(magnitudes, 1.0, 0.3)
    return Lora(tensors)


def lycoris(pipeline) -> Lora:
    """Every algorithm of LyCORIS in turns; drawn with weights that its own arithmetic made."""
    unet = attention(TRANSFORMERS, ATTENTION) + [
        f"{block}.{conv}"
        for block in ["down_blocks.0.resnets.1", "down_blocks.2.resnets.0", "mid_block.resnets.0", "up_blocks.3.resnets.2"]
        for conv in ["conv1", "conv2"]
    ]
    tensors = {}
    for index, (module, shape) in enumerate(_shapes(pipeline, unet, text(3))):
        kinds = [kind for kind in KINDS if len(shape) == 4 or not kind.endswith("tucker")]
        name = module.removeprefix("unet.").removeprefix("text_encoder.").replace(".", "_")
        name = f"lora_unet_{name}" if module.startswith("unet.") else f"lora_te_{name}"
        tensors |= {f"{name}.{part}": draw for part, draw in parts(kinds[index % len(kinds)], shape).items()}
    return Lora(tensors)


def xl(pipeline) -> Lora:
    """SDXL's two text encoders, and its UNet under the original names."""
    tensors = {}
    modules = {f"lora_te{number}_{name.replace('.', '_')}": f"{component}.{name}"
               for number, component in [(1, "text_encoder"), (2, "text_encoder_2")] for name in text(2)}  # fmt: skip
    block, file = "down_blocks.1.attentions.0", "input_blocks_4_1"
    for part in [*ATTENTION, "ff.net.0.proj", "ff.net.2"]:
        modules[f"lora_unet_{file}_{BLOCK.replace('.', '_')}_{part.replace('.', '_')}"] = f"unet.{block}.{BLOCK}.{part}"
    for name, module in modules.items():
        shape = _module(pipeline, module).weight.shape
        tensors |= low_rank(shape, 4, f"{name}.lora_down.weight", f"{name}.lora_up.weight", 1.5)
        tensors[f"{name}.alpha"] = number(3.0)
    return Lora(tensors, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})


def _module(pipeline, canonical: str) -> torch.nn.Module:
    component, name = canonical.split(".", 1)
    root = getattr(pipeline, component)
    # Newer text encoders have no `text_model` any more.
    return root.get_submodule(name if hasattr(root, "text_model") else name.removeprefix("text_model."))


def _shapes(pipeline, unet: list[str], text_encoder: list[str]) -> Iterator[tuple[str, torch.Size]]:
    for module in [f"unet.{name}" for name in unet] + [f"text_encoder.{name}" for name in text_encoder]:
        yield module, _module(pipeline, module).weight.shape


# --- LyCORIS ---------------------------------------------------------------------------------------------------------

KINDS = ["loha", "lokr", "lokr_low", "lokr_lower", "locon_tucker", "loha_tucker", "lokr_tucker", "dora", "dora_in", "doha", "full"]


def parts(kind: str, shape: torch.Size) -> dict[str, Draw]:
    """A module's tensors, without its name."""
    n, c, *kernel = shape
    k = c * math.prod(kernel)
    ones = [1] * len(kernel)
    # Where a Kronecker product is cut.
    a, b = 4, 2
    scale = (0.8 / math.sqrt(k)) ** 0.5
    draw = lambda *shape: Draw(shape, 0.0, 0.7)
    match kind:
        case "loha":
            made = {"hada_w1_a": draw(n, 2), "hada_w1_b": draw(2, k), "hada_w2_a": draw(n, 2), "hada_w2_b": draw(2, k)}
            return {name: Draw(d.shape, 0.0, scale**0.5) for name, d in made.items()} | {"alpha": number(3.0)}
        case "loha_tucker":
            made = {"hada_t1": draw(2, 2, *kernel), "hada_w1_a": draw(2, n), "hada_w1_b": draw(2, c),
                    "hada_t2": draw(2, 2, *kernel), "hada_w2_a": draw(2, n), "hada_w2_b": draw(2, c)}  # fmt: skip
            return made | {"alpha": number(0.6)}
        case "lokr":
            return {"lokr_w1": draw(a, b), "lokr_w2": Draw((n // a, c // b, *kernel), 0.0, scale**2), "alpha": number(7.0)}
        case "lokr_low":
            w2_b = (3, c // b * math.prod(kernel))
            return {"lokr_w1": draw(a, b), "lokr_w2_a": Draw((n // a, 3), 0.0, scale), "lokr_w2_b": Draw(w2_b, 0.0, scale),
                    "alpha": number(2.0)}  # fmt: skip
        case "lokr_lower":
            w2_b = (3, c // b * math.prod(kernel))
            return {"lokr_w1_a": draw(a, 3), "lokr_w1_b": draw(3, b), "lokr_w2_a": Draw((n // a, 3), 0.0, scale),
                    "lokr_w2_b": Draw(w2_b, 0.0, scale), "alpha": number(2.0)}  # fmt: skip
        case "lokr_tucker":
            return {"lokr_w1": draw(a, b), "lokr_t2": draw(3, 3, *kernel), "lokr_w2_a": Draw((3, n // a), 0.0, scale),
                    "lokr_w2_b": Draw((3, c // b), 0.0, scale), "alpha": number(2.0)}  # fmt: skip
        case "locon_tucker":
            return {"lora_up.weight": Draw((n, 3, *ones), 0.0, scale), "lora_mid.weight": draw(3, 3, *kernel),
                    "lora_down.weight": Draw((3, c, *ones), 0.0, scale), "alpha": number(2.0)}  # fmt: skip
        case "dora" | "dora_in":
            rows = low_rank(shape, 3, "lora_down.weight", "lora_up.weight")
            magnitudes = (n, 1, *ones) if kind == "dora" else (1, c, *ones)
            return rows | {"alpha": number(2.0), "dora_scale": Draw(magnitudes, 1.0, 0.3)}
        case "doha":
            return parts("loha", shape) | {"dora_scale": Draw((n, 1, *ones), 1.0, 0.3)}
        case "full":
            return {"diff": Draw(tuple(shape), 0.0, scale**2)}
    raise ValueError(kind)


def merged(weight: torch.Tensor, values: dict[str, torch.Tensor], strength: float) -> torch.Tensor:
    """The weight that LyCORIS makes: its `functional` package, with alpha / rank as its modules have it."""
    get, has = values.get, lambda part: part in values
    alpha = float(get("alpha", torch.tensor(math.nan)))
    if has("hada_w1_a"):
        scale = torch.tensor(alpha / get("hada_w1_b").shape[0])
        factors = [get(f"hada_{part}") for part in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")]
        delta = loha.diff_weight(*factors, gamma=scale)
    elif has("lokr_w1") or has("lokr_w1_a"):
        rank = get("lokr_w2_b").shape[0] if has("lokr_w2_b") else None
        factors = [get(f"lokr_{part}") for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
        delta = lokr.kron_weight(*factors, scale=alpha / rank if rank else 1.0)
    elif has("diff"):
        delta = get("diff")
    else:
        factors = [get(f"lora_{part}.weight") for part in ("down", "up", "mid")]
        delta = locon.diff_weight(*factors, gamma=alpha / get("lora_down.weight").shape[0])
    delta = delta.reshape(weight.shape)
    if not has("dora_scale"):
        return weight + strength * delta
    magnitudes = get("dora_scale")
    if magnitudes.shape[0] != weight.shape[0]:
        return apply_dora_scale(weight, delta, magnitudes, strength)
    # The same along the other axis.
    return weight + strength * (weight_decompose(weight + delta, magnitudes, 1, wd_on_out=True) - weight)


def merge_into(pipeline, lora: Lora, strength: float) -> None:
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in lora.values().items():
        module, part = name.split(".", 1)
        groups.setdefault(module, {})[part] = value
    for component, prefix in [("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")]:
        for name, module in getattr(pipeline, component).named_modules():
            values = groups.pop(prefix + name.replace(".", "_"), None)
            if values is not None:
                module.weight.data = merged(module.weight.data, values, strength)
    assert not groups, groups.keys()


# --- Images ----------------------------------------------------------------------------------------------------------

FILES = {
    "kohya": ("tiny-sd15", kohya),
    "kohya-original": ("tiny-sd15", kohya_original),
    "peft": ("tiny-sd15", of_peft),
    "old": ("tiny-sd15", of_old_diffusers),
    "dora": ("tiny-sd15", dora_of_peft),
    "lycoris": ("tiny-sd15", lycoris),
    "xl": ("sdxl", xl),
}
DRAWN = {
    "kohya": [("kohya", 1.0)],
    "kohya-original": [("kohya-original", 0.7)],
    "peft": [("peft", 1.0)],
    "old": [("old", -0.8)],
    "dora": [("dora", 1.0)],
    "several": [("kohya", 0.8), ("peft", -0.6), ("old", 0.5)],
    "lycoris": [("lycoris", 0.8)],
    "xl": [("xl", 1.0)],
}


def export(pipelines: dict, folder: Path, write_json) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: make(pipelines[model]) for name, (model, make) in FILES.items()}
    images = []
    for name, loras in DRAWN.items():
        model = FILES[loras[0][0]][0]
        request = dict(file=f"{name}.png", model=model, loras=loras, prompt=PROMPT, size=64, steps=4, guidance_scale=4.0, seed=7)
        request["scheduler"] = "euler_a" if name == "several" else "ddim"
        draw(pipelines[model], files, request, folder)
        images.append(request)
    weights, expected = WEIGHTS(), {}
    for case in weights:
        expected[case["name"]] = case.pop("expected").contiguous()
    save_file(expected, folder / "weights.safetensors")
    content = dict(files={name: lora.row() for name, lora in files.items()}, images=images, weights=weights)
    write_json(folder / "loras.json", content)


def draw(pipeline, files: dict[str, Lora], request: dict, folder: Path) -> None:
    without = _draw(pipeline, request)
    if request["file"] == "lycoris.png":
        copied = copy.deepcopy(pipeline)
        for name, strength in request["loras"]:
            merge_into(copied, files[name], strength)
        image = _draw(copied, request)
    else:
        with loaded(pipeline, files, request["loras"]):
            image = _draw(pipeline, request)
    again = _draw(pipeline, request)
    assert np.array_equal(np.asarray(without), np.asarray(again)), "what was loaded is unloaded"
    difference = psnr_db(without, image)
    assert difference < MAX_PSNR_WITHOUT_DB, f"{request['file']}: {difference:.1f} dB from the image without"
    image.save(folder / request["file"])


@contextmanager
def loaded(pipeline, files: dict[str, Lora], loras: list[tuple[str, float]]):
    """The pipeline with LoRAs that diffusers loaded from files."""
    with tempfile.TemporaryDirectory() as folder, flat_text_encoders():
        for name, _ in loras:
            path = Path(folder, f"{name}.safetensors")
            save_file(files[name].values(), path, metadata=files[name].metadata)
            # SDXL's pipeline passes on the configuration, by which the original blocks are counted, by itself.
            more = {} if hasattr(pipeline, "text_encoder_2") else {"unet_config": pipeline.unet.config}
            pipeline.load_lora_weights(path, adapter_name=name, **more)
        for name, _ in loras:
            expect_all(pipeline, name, files[name])
        pipeline.set_adapters([name for name, _ in loras], [strength for _, strength in loras])
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


def expect_all(pipeline, adapter: str, lora: Lora) -> None:
    """Diffusers may leave out what it does not know, and transformers begin an adapter anew when it loads another."""
    components = [getattr(pipeline, name, None) for name in ("unet", "text_encoder", "text_encoder_2")]
    layers = [module for component in components if component is not None for module in component.modules()]
    found = [
        part[adapter].weight
        for module in layers
        for part in (getattr(module, "lora_A", {}), getattr(module, "lora_magnitude_vector", {}))
        if adapter in part
    ]
    ends = ("lora_down.weight", "lora_A.weight", ".down.weight", "lora_magnitude_vector")
    expected = [value.float() for name, value in lora.values().items() if name.endswith(ends)]
    assert len(found) == len(expected), f"{adapter}: {len(found)} of {len(expected)} tensors"
    sums = [sorted(float(value.double().sum()) for value in values) for values in (found, expected)]
    assert np.allclose(*sums, atol=1e-5), f"{adapter}: other numbers"


@contextmanager
def flat_text_encoders():
    """Without `tiny.mend_clip_skip`, by which diffusers would take text encoders for older ones."""
    mended = CLIPTextModel.__dict__.get("text_model")
    if mended is not None:
        del CLIPTextModel.text_model
    try:
        yield
    finally:
        if mended is not None:
            CLIPTextModel.text_model = mended


def _draw(pipeline, request: dict) -> Image.Image:
    pipeline.scheduler = schedulers.make(request["scheduler"])
    return pipeline(
        request["prompt"],
        width=request["size"],
        height=request["size"],
        num_inference_steps=request["steps"],
        guidance_scale=request["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(request["seed"]),
    ).images[0]


def psnr_db(a: Image.Image, b: Image.Image) -> float:
    squares = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2
    return 10 * math.log10(255**2 / squares.mean())


# --- Single weights --------------------------------------------------------------------------------------------------


def WEIGHTS() -> list[dict]:
    cases = []
    for kind in KINDS + ["lora"]:
        for shape in [(16, 12), (8, 6, 3, 3)]:
            if len(shape) == 2 and kind.endswith("tucker"):
                continue
            made = parts(kind, shape) if kind != "lora" else low_rank(shape, 3, "lora_down.weight", "lora_up.weight") | {"alpha": number(2)}
            for strength in (1.0, -0.6):
                cases.append(_case(f"{kind}.{len(shape)}d.{strength}", shape, made, strength, merged))
    for shape in [(16, 12), (8, 6, 3, 3)]:
        made = low_rank(shape, 3, "lora_A.weight", "lora_B.weight")
        magnitudes = (shape[0],) if len(shape) == 2 else (1, shape[0], 1, 1)
        made |= {"lora_magnitude_vector": Draw(magnitudes, 1.0, 0.3)}
        cases.append(_case(f"peft_dora.{len(shape)}d", shape, made, 1.0, peft_dora))
    return cases


def _case(name: str, shape: tuple[int, ...], made: dict[str, Draw], strength: float, oracle) -> dict:
    base = Draw(shape, 0.0, 1 / math.sqrt(math.prod(shape[1:])))
    tensors = {f"unet.{name.replace('.', '_')}.{part}": draw for part, draw in made.items()}
    values = {part: draw.values(name) for part, (name, draw) in zip(made, tensors.items(), strict=True)}
    expected = oracle(base.values(name), values, strength)
    return dict(name=name, strength=strength, base=[name, base.shape, base.mean, base.std], lora=Lora(tensors).row(), expected=expected)


def peft_dora(weight: torch.Tensor, values: dict[str, torch.Tensor], _strength: float) -> torch.Tensor:
    n, c, *kernel = weight.shape
    layer = torch.nn.Conv2d(c, n, kernel, bias=False) if kernel else torch.nn.Linear(c, n, bias=False)
    model = torch.nn.Sequential(layer)
    model[0].weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    rank = values["lora_A.weight"].shape[0]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], use_dora=True)
    model = peft.get_peft_model(model, config)
    adapted = model.base_model.model[0]
    adapted.lora_A["default"].weight.data = values["lora_A.weight"]
    adapted.lora_B["default"].weight.data = values["lora_B.weight"]
    adapted.lora_magnitude_vector["default"].weight.data = values["lora_magnitude_vector"]
    return model.merge_and_unload()[0].weight.data
