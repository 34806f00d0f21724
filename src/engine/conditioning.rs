//! From a request's words to what the UNet is told: text embeddings and what SDXL wants besides.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    DrawError, Models,
    checkpoint::{Facts, Family},
    model::{ClipTextEncoder, Conditioning},
    nn::{self, Tensor},
    prompt::{self, Chunk, Encoded, Padding},
};
use crate::{
    modes::{LongPrompts, PromptSyntax, Size},
    request::GenerateRequest,
};

/// What SDXL's refiner is told of an image's beauty, and of the negative prompt's.
const AESTHETIC_SCORE: f32 = 6.0;
const NEGATIVE_AESTHETIC_SCORE: f32 = 2.5;

/// What the UNet is told of one prompt.
struct Told {
    /// `[1, 77·chunks, c]`
    context: Tensor,
    /// `[1, time]`
    added: Option<Tensor>,
}

pub(super) struct Conditioned {
    /// Of the prompt; with guidance of two, the negative prompt's first.
    pub conditioning: Conditioning,
    /// The end of the prompt that the text encoders did not see.
    pub truncated: Option<String>,
}

/// The last few of a pipeline's: many images are drawn from the same words.
#[derive(Default)]
pub(super) struct Remembered(Mutex<VecDeque<(Key, Arc<Conditioned>)>>);

/// All that it depends on besides the pipeline.
#[derive(PartialEq)]
struct Key {
    prompt: String,
    negative_prompt: Option<String>,
    syntax: (PromptSyntax, LongPrompts),
    clip_skip: u32,
    size: Size,
    guidance_scale: f32,
    guided: bool,
}

impl Remembered {
    const KEPT: usize = 8;

    /// As [`condition`], which is asked where it is not known yet.
    pub fn condition(
        &self,
        models: &Models,
        facts: &Facts,
        request: &GenerateRequest,
        guided: bool,
    ) -> Result<Arc<Conditioned>, DrawError> {
        let key = Key {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative_prompt.clone(),
            syntax: (request.prompt_syntax, request.long_prompts),
            clip_skip: request.clip_skip,
            size: request.size,
            guidance_scale: request.guidance_scale,
            guided,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, conditioned)) = known.iter().find(|(known, _)| *known == key) {
            return Ok(conditioned.clone());
        }
        let conditioned = Arc::new(condition(models, facts, request, guided)?);
        if known.len() >= Self::KEPT {
            known.pop_front();
        }
        known.push_back((key, conditioned.clone()));
        Ok(conditioned)
    }
}

/// One of the two prompts as each of the text encoders reads it.
struct Words {
    first: Encoded,
    second: Encoded,
}

impl Words {
    fn of(text: &str, request: &GenerateRequest, facts: &Facts) -> Self {
        let encode =
            |padding| prompt::encode(text, request.prompt_syntax, request.long_prompts, padding);
        Self { first: encode(first_padding(facts.family)), second: encode(Padding::Zero) }
    }

    fn extend_to(&mut self, chunks: usize, facts: &Facts) {
        self.first.extend_to(chunks, first_padding(facts.family));
        self.second.extend_to(chunks, Padding::Zero);
    }
}

/// OpenAI's encoder was trained with end tokens behind the text, OpenCLIP's with zeros.
fn first_padding(family: Family) -> Padding {
    match family {
        Family::Sd1 | Family::Sdxl => Padding::End,
        Family::Sd2 | Family::SdxlRefiner => Padding::Zero,
    }
}

/// Reads the request's prompts. Layers are skipped for the prompt alone, as the reference does.
pub(super) fn condition(
    models: &Models,
    facts: &Facts,
    request: &GenerateRequest,
    guided: bool,
) -> Result<Conditioned, DrawError> {
    let clip_skip = request.clip_skip as usize;
    check_clip_skip(models, facts, request.clip_skip)?;
    let mut words = Words::of(&request.prompt, request, facts);
    let truncated = words.first.truncated.take();
    let guidance = models.unet.embed_guidance(f64::from(request.guidance_scale))?;
    if !guided {
        let Told { context, added } =
            tell(models, facts, request, &words, clip_skip, AESTHETIC_SCORE)?;
        return Ok(Conditioned {
            conditioning: Conditioning { context, added, guidance },
            truncated,
        });
    }
    let negative = request.negative_prompt.as_deref();
    let mut others = Words::of(negative.unwrap_or_default(), request, facts);
    let chunks = words.first.chunks.len().max(others.first.chunks.len());
    words.extend_to(chunks, facts);
    others.extend_to(chunks, facts);
    let with = tell(models, facts, request, &words, clip_skip, AESTHETIC_SCORE)?;
    let without = if negative.is_none() && facts.zero_negative {
        let pooled = models.pooled_width();
        Told {
            context: with.context.scale(0.0)?,
            added: added(
                models,
                facts,
                request,
                &Tensor::zeros(&[1, pooled])?,
                NEGATIVE_AESTHETIC_SCORE,
            )?,
        }
    } else {
        tell(models, facts, request, &others, 0, NEGATIVE_AESTHETIC_SCORE)?
    };
    let added = match (&without.added, &with.added) {
        (Some(without), Some(with)) => Some(Tensor::cat(&[without, with], 0)?),
        _ => None,
    };
    let context = Tensor::cat(&[&without.context, &with.context], 0)?;
    Ok(Conditioned { conditioning: Conditioning { context, added, guidance: None }, truncated })
}

/// Something must be left of the encoders, the layer that is used without any skipping included.
fn check_clip_skip(models: &Models, facts: &Facts, clip_skip: u32) -> Result<(), DrawError> {
    let penultimate = usize::from(matches!(facts.family, Family::Sdxl | Family::SdxlRefiner));
    let encoders = [&models.text_encoder, &models.text_encoder_2];
    let layers = encoders.into_iter().flatten().map(ClipTextEncoder::layers).min().unwrap_or(0);
    if clip_skip as usize + penultimate >= layers {
        return Err(DrawError::ClipSkip { clip_skip, layers });
    }
    Ok(())
}

fn tell(
    models: &Models,
    facts: &Facts,
    request: &GenerateRequest,
    words: &Words,
    clip_skip: usize,
    aesthetic_score: f32,
) -> nn::Result<Told> {
    let mut contexts = Vec::new();
    let mut pooled = None;
    if let Some(encoder) = &models.text_encoder {
        let ids = ids(&words.first);
        let hidden = if models.text_encoder_2.is_some() {
            encoder.hidden(&ids, clip_skip + 1)?
        } else {
            encoder.encode(&ids, clip_skip)?
        };
        contexts.push(weigh(side_by_side(hidden)?, &words.first)?);
    }
    if let Some(encoder) = &models.text_encoder_2 {
        let ends: Vec<_> = words.second.chunks.iter().map(Chunk::end).collect();
        let ids = ids(&words.second);
        let (hidden, whole) = encoder.hidden_and_pooled(&ids, clip_skip + 1, &ends)?;
        contexts.push(weigh(side_by_side(hidden)?, &words.second)?);
        pooled = Some(whole.narrow(0, 0, 1)?);
    }
    let context = Tensor::cat(&contexts.iter().collect::<Vec<_>>(), 2)?;
    let added = match pooled {
        Some(pooled) => added(models, facts, request, &pooled, aesthetic_score)?,
        None => None,
    };
    Ok(Told { context, added })
}

fn ids(words: &Encoded) -> Vec<Vec<u32>> {
    words.chunks.iter().map(|chunk| chunk.ids.clone()).collect()
}

/// `[chunks, 77, c]` → `[1, 77·chunks, c]`
fn side_by_side(hidden: Tensor) -> nn::Result<Tensor> {
    let [chunks, length, width] = hidden.dims3()?;
    hidden.reshape(&[1, chunks * length, width])
}

/// Multiplies each token's embedding by its weight and keeps the mean of all (AUTOMATIC1111's
/// emphasis "Original"; diffusers' community pipeline `lpw_stable_diffusion`).
fn weigh(context: Tensor, words: &Encoded) -> nn::Result<Tensor> {
    if !words.is_weighted() {
        return Ok(context);
    }
    let [_, length, width] = context.dims3()?;
    let numbers = context.to_vec()?;
    let mean = |numbers: &[f32]| numbers.iter().map(|x| f64::from(*x)).sum::<f64>();
    let weights = words.chunks.iter().flat_map(|chunk| &chunk.weights);
    let tokens = numbers.chunks(width).zip(weights);
    let weighted: Vec<f32> =
        tokens.flat_map(|(token, weight)| token.iter().map(move |x| x * weight)).collect();
    let (before, after) = (mean(&numbers), mean(&weighted));
    let weighted = Tensor::from_vec(weighted, &[1, length, width])?;
    if after == 0.0 { Ok(weighted) } else { weighted.scale(before / after) }
}

/// SDXL's micro-conditioning (Podell et al., 2023, section 2.2): the image as if it had always had
/// its size and had not been cropped.
fn added(
    models: &Models,
    facts: &Facts,
    request: &GenerateRequest,
    pooled: &Tensor,
    aesthetic_score: f32,
) -> nn::Result<Option<Tensor>> {
    let (height, width) = (request.size.height as f32, request.size.width as f32);
    let ids = match facts.family {
        Family::SdxlRefiner => vec![height, width, 0.0, 0.0, aesthetic_score],
        _ => vec![height, width, 0.0, 0.0, height, width],
    };
    models.unet.embed_added(pooled, &ids)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        engine::Prepared,
        modes::{CheckpointRef, PipelineSpec},
    };

    #[test]
    fn the_same_words_are_encoded_once_and_others_are_others() {
        let name = "tests/parity/golden/tiny-sd15.safetensors".to_owned();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
        let spec = PipelineSpec::of(CheckpointRef { name, path });
        let prepared = Prepared::open(&spec, &mut Default::default()).unwrap();
        let pipeline = prepared.load(Default::default(), &|_| ()).unwrap();
        let remembered = Remembered::default();
        let condition = |request: &GenerateRequest, guided| {
            remembered.condition(pipeline.models(), pipeline.facts(), request, guided).unwrap()
        };
        let request = GenerateRequest::of("tiny", "a fox");
        let first = condition(&request, false);
        let again = GenerateRequest { seed: 5, steps: 9, ..request.clone() };
        assert!(Arc::ptr_eq(&first, &condition(&again, false)));
        let others = [
            GenerateRequest { negative_prompt: Some("rain".to_owned()), ..request.clone() },
            GenerateRequest { clip_skip: 1, ..request.clone() },
            GenerateRequest { prompt_syntax: PromptSyntax::Weighted, ..request.clone() },
            GenerateRequest { long_prompts: LongPrompts::Chunk, ..request.clone() },
            GenerateRequest { guidance_scale: 2.0, ..request.clone() },
            GenerateRequest { size: Size::new(64, 128).unwrap(), ..request.clone() },
            GenerateRequest::of("tiny", "two foxes"),
        ];
        for other in &others {
            assert!(!Arc::ptr_eq(&first, &condition(other, false)), "{other:?}");
        }
        assert!(Arc::ptr_eq(&first, &condition(&request, false)), "eight are kept");
        assert!(!Arc::ptr_eq(&first, &condition(&request, true)));
        assert!(!Arc::ptr_eq(&first, &condition(&request, false)), "the oldest went");
    }
}
