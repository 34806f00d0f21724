"""Prompts beyond 75 tokens and prompts with weights, which the pipelines of diffusers do not know: as embeddings.

A prompt is segments of text with their weights. Long prompts are encoded in chunks of 75 tokens, each with its own start, end
and padding, and laid side by side; weights multiply the hidden states of their tokens, and all of a prompt's are scaled so that
their mean is what it was, for each text encoder by itself (stable-diffusion-webui's way, and that of diffusers' community
pipeline lpw_stable_diffusion).
"""

import torch

CHUNK = 75

Segments = list[tuple[str, float]]


def embeddings(pipeline, prompt: Segments, negative: Segments | None | bool = False, *, chunk: bool) -> dict:
    """The pipeline's arguments in place of prompts. Without `negative` there is no guidance; `None` is zeros."""
    given = [prompt] + ([negative] if negative else [])
    chunks = max(_chunks(segments, pipeline, chunk) for segments in given)
    encoded = [_encode(pipeline, segments, chunks, chunk) for segments in given]
    if negative is None:
        encoded.append(tuple(value if value is None else torch.zeros_like(value) for value in encoded[0]))
    found = {}
    for prefix, (context, pooled) in zip(("", "negative_"), encoded):
        found[f"{prefix}prompt_embeds"] = context
        if pooled is not None:
            found[f"{prefix}pooled_prompt_embeds"] = pooled
    return found


def _tokens(tokenizer, segments: Segments, chunk: bool) -> list[tuple[int, float]]:
    tokens = [
        (id, weight) for text, weight in segments for id in tokenizer(text, add_special_tokens=False).input_ids
    ]
    return tokens if chunk else tokens[:CHUNK]


def _chunks(segments: Segments, pipeline, chunk: bool) -> int:
    """At least one: the empty prompt's."""
    tokenizer = pipeline.tokenizer or pipeline.tokenizer_2
    return max(1, -(-len(_tokens(tokenizer, segments, chunk)) // CHUNK))


def _encode(pipeline, segments: Segments, chunks: int, chunk: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    sdxl = hasattr(pipeline, "text_encoder_2")
    contexts, pooled = [], None
    for suffix in ("", "_2") if sdxl else ("",):
        encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
        if encoder is None:
            continue
        rows, weights = _rows(tokenizer, _tokens(tokenizer, segments, chunk), chunks)
        out = encoder(rows, output_hidden_states=True)
        hidden = out.hidden_states[-2] if sdxl else out.last_hidden_state
        contexts.append(_weighted(hidden.reshape(1, chunks * (CHUNK + 2), -1), weights))
        if suffix:
            pooled = out.text_embeds[:1]
    return torch.cat(contexts, dim=-1), pooled


def _weighted(context: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if (weights == 1).all():
        return context
    weighted = context * weights[..., None]
    return weighted * (context.mean() / weighted.mean())


def _rows(tokenizer, tokens: list[tuple[int, float]], chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[chunks, 77]` and weights `[1, chunks * 77]`; start, end and padding weigh 1."""
    ids, weights = [], []
    for at in range(0, chunks * CHUNK, CHUNK):
        part = tokens[at : at + CHUNK]
        rest = CHUNK - len(part)
        ids.append(
            [tokenizer.bos_token_id, *(id for id, _ in part), tokenizer.eos_token_id, *[tokenizer.pad_token_id] * rest]
        )
        weights += [1.0, *(weight for _, weight in part), 1.0, *[1.0] * rest]
    return torch.tensor(ids), torch.tensor([weights])
