"""Makes the tiny checkpoint, the recipes of the others, and the golden data of the parity tests.

    python tests/parity/export.py            # writes tests/parity/golden
    python tests/parity/export.py --check    # makes both again elsewhere; fails if a byte differs
"""

import argparse
import filecmp
import json
import logging
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import families
import images
import lora
import models
import schedulers
import stages
import tiny
import upscalers

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = Path("tests/parity/golden/tiny-sd15.safetensors")
GOLDEN = Path("tests/parity/golden")
SEED = 0
# Sums are split among threads: another number of them would round otherwise.
THREADS = 2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    check = arguments.parse_args().check
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "again") if check else REPOSITORY
        pipeline = export_checkpoint(root / CHECKPOINT)
        others = export_recipes(root / GOLDEN / "models")
        tiny.mend_clip_skip()
        export_golden(pipeline, root / GOLDEN)
        export_families(others | {"tiny-sd15": pipeline}, root / GOLDEN / "families")
        say("LoRAs")
        lora.export(others | {"tiny-sd15": pipeline}, root / GOLDEN / "lora", write_json)
        say("upscalers")
        upscalers.export(root / GOLDEN / "upscalers")
        if check:
            compare(root)


def export_checkpoint(path: Path):
    say("the tiny checkpoint")
    pipeline = tiny.build(SEED)
    pipeline.set_progress_bar_config(disable=True)
    tiny.save(pipeline, path)
    tiny.check_reads_back(pipeline, path)
    return pipeline


def export_recipes(folder: Path) -> dict:
    """The models of every family by name."""
    built = {}
    for name in models.FAMILIES:
        say(f"the recipe of {name}")
        built[name], recipe = models.build(name)
        recipe.write(folder / f"{name}.json")
        models.check_reads_back(name, built[name], recipe)
        if name == families.VAE_OWNER:
            models.vae_alone(recipe).write(folder / "vae.json")
    return built


def export_families(built: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    families.pictures(folder)
    requests = families.requests()
    for number, request in enumerate(requests, 1):
        say(f"image {number} of {len(requests)}: {request['file']}")
        families.draw(built, request, folder)
    say("stages")
    save_file(families.stages(built, folder), folder / "stages.safetensors")
    write_rows(folder / "families.json", requests)


def export_golden(pipeline, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    say("tokens")
    write_json(folder / "tokens.json", stages.tokens(pipeline))
    write_json(folder / "texts.json", stages.texts())
    say("text embeddings")
    tensors, facts = stages.text_embeddings(pipeline)
    save_file(tensors, folder / "text.safetensors")
    write_json(folder / "text.json", facts)
    say("noise")
    save_file(stages.noise(), folder / "noise.safetensors")
    say("UNet steps")
    tensors, facts = stages.unet_steps(pipeline)
    save_file(tensors, folder / "unet.safetensors")
    write_json(folder / "unet.json", facts)
    say("VAE decodes")
    save_file(stages.vae_decodes(pipeline), folder / "vae.safetensors")
    say("schedulers")
    write_json(folder / "schedulers.json", schedulers.golden())
    requests = images.settings()
    latents = {}
    (folder / "images").mkdir(exist_ok=True)
    for number, request in enumerate(requests, 1):
        say(f"image {number} of {len(requests)}: {request['file']}")
        latents[request["file"]] = images.draw(pipeline, request, folder / "images")
    save_file(latents, folder / "images" / "latents.safetensors")
    write_json(folder / "images" / "images.json", requests)


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def write_rows(path: Path, rows: list) -> None:
    """One a line, for those who look at differences."""
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def compare(root: Path) -> None:
    made = {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    there = {p.relative_to(REPOSITORY) for p in (REPOSITORY / GOLDEN).rglob("*") if p.is_file()} | {CHECKPOINT}
    different = sorted(str(p) for p in made & there if not filecmp.cmp(root / p, REPOSITORY / p, shallow=False))
    different += sorted(str(p) for p in made ^ there)
    if different:
        raise SystemExit("Not the same: " + ", ".join(different))
    say(f"{len(made)} files, all the same")


def say(what: str) -> None:
    print(f"export: {what}", flush=True)


if __name__ == "__main__":
    main()
