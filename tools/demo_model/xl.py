"""The same in SDXL's layout: two text encoders, and a UNet that is told the prompt as a whole and sizes."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import base
import pictures
from base import BATCH, TEXT_ENCODER, WIDTH, Latents
from text import EMPTY, PADDING_2, Vocabulary
from training import train

STEPS = 3_600
SIZE_WIDTH = 32
TEXT_ENCODER_2 = TEXT_ENCODER | dict(hidden_act="gelu")
UNET = base.UNET | dict(
    block_out_channels=(64, 64),
    attention_head_dim=(1, 1),  # heads are 64 wide; this is their number at each level
    use_linear_projection=True,
    cross_attention_dim=2 * WIDTH,
    addition_embed_type="text_time",
    addition_time_embed_dim=SIZE_WIDTH,
    projection_class_embeddings_input_dim=WIDTH + 6 * SIZE_WIDTH,
)


class Model(torch.nn.Module):
    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.end = len(vocabulary) - 1
        tokens = dict(vocab_size=len(vocabulary), eos_token_id=self.end)
        self.text = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER | tokens))
        self.text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2 | tokens))
        for encoder in (self.text, self.text_2):
            base.spread_tokens(encoder)
        self.unet = UNet2DConditionModel(**UNET)
        self.unet.set_attn_processor(AttnProcessor())
        self.empty = vocabulary.encode([EMPTY])
        self.padding_2 = vocabulary.number(PADDING_2)

    def condition(self, tokens: torch.Tensor, sizes: torch.Tensor):
        """As SDXL: both encoders' last hidden states but one; nothing at all where the caption is empty."""
        first = self.text(tokens, output_hidden_states=True)
        second = self.text_2(self._padded_for_second(tokens), output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], 2)
        said = (tokens != self.empty).any(1)
        return context * said[:, None, None], dict(text_embeds=second.text_embeds * said[:, None], time_ids=sizes)

    def _padded_for_second(self, tokens: torch.Tensor) -> torch.Tensor:
        behind_end = (tokens == self.end).cumsum(1) > 1
        return torch.where(behind_end, self.padding_2, tokens)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # Original size, crop and target size: all pictures have the same.
        sizes = torch.tensor([pictures.SIZE, pictures.SIZE, 0, 0, pictures.SIZE, pictures.SIZE]).expand(len(noisy), 6)
        context, added = self.condition(tokens, sizes)
        return self.unet(noisy, timesteps, encoder_hidden_states=context, added_cond_kwargs=added).sample


def trained(begun: base.Model, vae, vocabulary: Vocabulary, work: Path) -> Model:
    """Whatever is as large in `begun` begins as it is there: the text encoders and the UNet's outer level."""
    latents = Latents.of("plain", base.PICTURES, vae, vocabulary, work)
    torch.manual_seed(3)
    model = Model(vocabulary)
    for part, other in ((model.text, begun.text), (model.text_2, begun.text), (model.unet, begun.unet)):
        weights = part.state_dict()
        same = {n: w for n, w in other.state_dict().items() if n in weights and w.shape == weights[n].shape}
        part.load_state_dict(weights | same)
    loss = lambda step, generator: base.denoising_loss(model, latents, BATCH, generator)
    train("xl", model, loss, steps=range(STEPS), learning_rate=1e-3, work=work, average=0.999, warmup=200)
    return model.eval().requires_grad_(False)
