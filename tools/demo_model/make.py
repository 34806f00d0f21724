"""Makes the demo models: `python tools/demo_model/make.py`. Stopped, it goes on where it was when it is started again."""

import argparse
import os
import time
from pathlib import Path

import torch

import adapters
import base
import export
import vae as autoencoder
import xl
from text import Vocabulary

ROOT = Path(__file__).parents[2]
STAGES = ("vae", "demo", "lcm", "outline", "pixelated", "xl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "demo_model", help="where what is half done is kept")
    parser.add_argument("--out", type=Path, default=ROOT, help="where models/demo/ and loras/ are written")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to make")
    parser.add_argument("--base", type=Path, metavar="FILE", help="a demo.safetensors to go on from, for LoRAs and XL alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    first = STAGES.index("lcm") if arguments.base else 0
    make(arguments.work, arguments.out, arguments.base, STAGES[first : STAGES.index(arguments.until) + 1])


def make(work: Path, out: Path, given: Path | None, stages: tuple[str, ...]) -> None:
    vocabulary = Vocabulary()
    if given:
        model, vae = export.load_sd1(given, vocabulary)
    else:
        vae = autoencoder.trained(work)
        model = base.trained(vae, vocabulary, work) if stages[-1] != "vae" else None
    for stage in stages:
        begun = time.monotonic()
        match stage:
            case "demo":
                export.save_sd1(model, vae, vocabulary, out / "models/demo/demo.safetensors")
            case "lcm":
                unet = adapters.lcm(model, vae, vocabulary, work)
                adapters.save(unet, out / "loras/demo-lcm.safetensors", {"ss_output_name": "demo-lcm"})
            case "outline" | "pixelated":
                unet = adapters.style(stage, model, vae, vocabulary, work)
                adapters.save(unet, out / f"loras/demo-{stage}.safetensors", {"ss_output_name": f"demo-{stage}"})
            case "xl":
                model_xl = xl.trained(model, vae, vocabulary, work)
                export.save_sdxl(model_xl, vae, vocabulary, out / "models/demo/demo-xl.safetensors")
        print(f"{stage}: {(time.monotonic() - begun) / 60:.0f} min")


if __name__ == "__main__":
    main()
