//! The shape of `modes.yaml` as a JSON Schema, so that editors complete and check what is typed.
//!
//! It says what can be said without knowing names of modes and files; [`resolve`](super::resolve)
//! has the last word. A test holds the two together.

use serde_json::{Map, Value, json};

use crate::modes::{
    Defaults, EngineChoice, Eviction, Http, Jobs, LongPrompts, LoraCacheLimits, LoraRef, Memory,
    OnLoraError, Precision, Prediction, PromptSyntax, Retention, SchedulerId, Scheduling, Size,
    Spacing, Switch, Watch, Webhooks,
};

/// The schema (draft 7, which editors know best), as it ships in `modes.schema.json`.
pub fn schema() -> String {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "diffused: modes.yaml",
        "type": "object",
        "additionalProperties": false,
        "required": ["model_root", "default_mode", "modes"],
        "properties": {
            "model_root": text("Where the models are; relative to the folder of this file."),
            "lora_root": text("Where the LoRAs are [model_root]."),
            "default_mode": text("The mode that is loaded at the start, and drawn with where a request names none."),
            "max_pixels": whole("The largest image that a request may ask for [4194304].", 64, Size::MAX_PIXELS),
            "watch": one_of("How an edit of this file is noticed [auto].", Watch::NAMES),
            "scheduling": one_of("Which waiting job is next: in the order of arrival, or those of the loaded mode first [fifo].", Scheduling::NAMES),
            "max_wait": with_pattern("With affinity: a job that has waited so long is overtaken no more, 90s, 10m, 2h or 7d [30s].", TIME),
            "fair": flag("Whether clients, told apart by their keys, take turns within a priority [false]."),
            "timeout": timeout("Drawing that takes longer fails: 90s, 10m, 2h, 7d, off, or auto: twenty times as long as it usually takes, and ten minutes [auto]."),
            "memory": memory(),
            "jobs": jobs(),
            "custom_jobs": {
                "description": "Commands that custom jobs may run, by the jobs' names.",
                "type": ["object", "null"],
                "propertyNames": names(),
                "additionalProperties": command(),
            },
            "webhooks": webhooks(),
            "http": http(),
            "modes": {
                "description": "The modes by their names.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": names(),
                "additionalProperties": {"$ref": "#/definitions/mode"},
            },
            "superres": superres(),
            "engine": one_of("The library that the networks run by [auto: libtorch where it is built in and there is a card, else candle].", EngineChoice::NAMES),
            "device": with_pattern("Where they run: auto, cpu, cuda (the first card), cuda:1 or metal [auto: the first card that the engine can use, else the CPU].", DEVICE),
            "precision": one_of("How their numbers are stored and multiplied [auto: fp16 on a card, fp32 on a CPU].", Precision::NAMES),
        },
        "definitions": {"mode": mode(), "lora": lora()},
    });
    format!("{schema:#}")
}

/// Of modes and custom jobs.
fn names() -> Value {
    json!({"pattern": "^[A-Za-z0-9._-]*[A-Za-z0-9][A-Za-z0-9._-]*$", "maxLength": 64})
}

const TIME: &str = r"^\s*0*[1-9][0-9]*\s*[smhd]\s*$";

/// A card's number is one below 120.
const DEVICE: &str = r"^(auto|cpu|metal|cuda(:0*([0-9]|[1-9][0-9]|1[01][0-9]))?)$";

fn command() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["command"],
        "properties": {
            "command": {
                "description": "The program, absolute, relative to the folder of this file, or a name that PATH has; then its arguments. No shell sees them.",
                "type": "array",
                "minItems": 1,
                "items": {"type": "string"},
            },
            "timeout": with_pattern("How long it may take, 90s, 10m, 2h or 7d [60s].", TIME),
            "description": text("One line for those who list the custom jobs."),
        },
    })
}

fn webhooks() -> Value {
    let mut secret = text("Signs the webhooks whose job names no secret of its own.");
    secret["minLength"] = 1.into();
    let keys = json!({
        "secret": secret,
        "allow_private": flag("Whether they may go to addresses that are not public [false]."),
        "max_attempts": whole("How often a delivery is tried [8].", 1, Webhooks::MAX_ATTEMPTS.into()),
        "timeout": with_pattern("Of one attempt, 90s, 10m, 2h or 7d [10s].", TIME),
        "first_retry": with_pattern("How long the second attempt waits for, about; each further one twice as long, up to ten minutes [1s].", TIME),
    });
    section("How webhooks are signed and delivered.", keys)
}

fn http() -> Value {
    let list = |description: &str, pattern: &str, max_length: u32| {
        json!({
            "description": description,
            "type": ["array", "null"],
            "items": {
                "type": "string",
                "pattern": format!("{pattern}|{VARIABLE}"),
                "maxLength": max_length,
            },
        })
    };
    let keys = json!({
        "hosts": list("Names under which this daemon is reached, beside localhost and IP addresses [none].", HOST_NAME, 253),
        "origins": list("Web pages that may use the API: scheme://host[:port] [none but the daemon's own].", ORIGIN, 512),
        "max_connections": whole("How many connections there may be at a time [512].", 1, Http::MAX_CONNECTIONS.into()),
    });
    section("Access from browsers, and the number of connections.", keys)
}

const HOST_NAME: &str = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$";
const ORIGIN: &str = r"^[A-Za-z][A-Za-z0-9+.-]*://([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$";

fn memory() -> Value {
    let mut limit_gb = number(
        "What all models and work may take of the device, in gb of 2^30 bytes [all of it].",
        0.0,
        Memory::MAX_GB,
    );
    limit_gb["exclusiveMinimum"] = 0.into();
    let lora_cache = json!({
        "max_files": whole("So many files [32].", 0, LoraCacheLimits::MAX_FILES.into()),
        "max_gb": number("So much of them together, in gb of 2^30 bytes [4].", 0.0, Memory::MAX_GB),
    });
    let keys = json!({
        "max_models": whole("How many models may be loaded at a time [as many as there is room for].", 1, Memory::MAX_MODELS.into()),
        "max_request_pipelines": whole("How many of them may be models with a request's own LoRAs [4].", 1, Memory::MAX_MODELS.into()),
        "limit_gb": limit_gb,
        "eviction": one_of("Which model leaves for another one [lru].", Eviction::NAMES),
        "idle_unload": time_or_off("A model that nobody has used for so long is unloaded: 90s, 10m, 2h, 7d or off [off]."),
        "verify": flag("Whether a model must draw one step before it is used [false]."),
        "host_cache_gb": number("On a card: how much of the host's memory keeps the weights of models that have left, in gb of 2^30 bytes [0].", 0.0, Memory::MAX_GB),
        "lora_cache": section("LoRA files that stay open once they were read.", lora_cache),
    });
    section("What may stay loaded.", keys)
}

fn jobs() -> Value {
    let retention = json!({
        "max_age": with_pattern("For so long: 90s, 10m, 2h or 7d [7d].", TIME),
        "max_jobs": whole("So many of them [10000].", 0, Retention::MAX_JOBS.into()),
        "max_gb": number("So much of their images and records together, in gb of 2^30 bytes [10].", 0.0, Memory::MAX_GB),
    });
    let keys = json!({
        "journal": one_of("Whether jobs and their images outlive the daemon [on].", Switch::NAMES),
        "max_attempts": whole("How often a job is begun under which the worker or the daemon dies [2].", 1, Jobs::MAX_ATTEMPTS.into()),
        "retention": section("What is kept of jobs that have ended.", retention),
    });
    section("What is kept of jobs.", keys)
}

/// A mapping that may be left out, and each of its keys.
fn section(description: &str, properties: Value) -> Value {
    json!({
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": properties,
    })
}

fn superres() -> Value {
    let description = "The upscaler: a .safetensors file; relative to model_root.";
    let model = json!({"description": description, "type": "string", "minLength": 1});
    let mapping = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["model"],
        "properties": {"model": model},
    });
    json!({
        "description": "What makes images larger where a request asks for it: an RRDBNet (ESRGAN, Real-ESRGAN); relative to model_root [Lanczos].",
        "anyOf": [{"type": "string", "minLength": 1}, mapping, {"type": "null"}],
    })
}

fn mode() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["model"],
        "properties": {
            "model": text("The checkpoint: a .safetensors file, or a folder as diffusers writes it; relative to model_root."),
            "vae": text("Drawn with instead of the model's own autoencoder; relative to model_root."),
            "loras": {
                "description": "Merged in this order; relative to lora_root.",
                "type": ["array", "null"],
                "items": {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/definitions/lora"}]},
            },
            "on_lora_error": one_of("What happens where a LoRA does not fit the model [fail].", OnLoraError::NAMES),
            "prediction": one_of("What the UNet predicts [what the model says].", Prediction::NAMES),
            "default_size": with_pattern("Width x height in pixels, multiples of 8 [512x512].", r"^\s*[0-9]+\s*[xX]\s*[0-9]+\s*$"),
            "default_steps": whole("Denoising steps [4].", 1, Defaults::MAX_STEPS.into()),
            "default_guidance": number("Guidance scale; up to 1 means none [1.0].", 0.0, Defaults::MAX_GUIDANCE_SCALE.into()),
            "guidance_rescale": number("How much contrast is taken back from guidance [0.0].", 0.0, 1.0),
            "default_scheduler": one_of("The sampling algorithm [the model's own].", SchedulerId::NAMES),
            "timestep_spacing": one_of("How timesteps are spread [the scheduler's own].", Spacing::NAMES),
            "default_negative_prompt": text("What a request gets that has no negative prompt."),
            "clip_skip": whole("Layers of the text encoder to leave out at its end [0].", 0, Defaults::MAX_CLIP_SKIP.into()),
            "long_prompts": one_of("Prompts over 75 tokens are cut, or encoded in chunks [cut].", LongPrompts::NAMES),
            "prompt_syntax": one_of("Whether (word:1.3) weighs a word [plain].", PromptSyntax::NAMES),
            "pinned": flag("Whether its model stays loaded until it is unloaded by name [false]."),
            "preload": flag("Whether its model is loaded at the start [false]."),
            "timeout": timeout("Drawing with it that takes longer fails: 90s, 10m, 2h, 7d, off, or auto: as the top level says [auto]."),
            "metadata": {"description": "Yours: shown to clients, otherwise not looked at.", "type": ["object", "null"]},
        },
    })
}

fn lora() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["path"],
        "properties": {
            "path": text("The file; relative to lora_root."),
            "strength": number("How strongly it is applied [1.0].", (-LoraRef::MAX_STRENGTH).into(), LoraRef::MAX_STRENGTH.into()),
            "adapter_name": text("A name that requests may call it by."),
        },
    })
}

// Each value may be absent (null), or come from the environment.

/// In any text.
const VARIABLE: &str = r"\$\{";

fn text(description: &str) -> Value {
    json!({"description": description, "type": ["string", "null"]})
}

fn flag(description: &str) -> Value {
    json!({
        "description": description,
        "type": ["boolean", "string", "null"],
        "pattern": VARIABLE,
    })
}

fn timeout(description: &str) -> Value {
    with_pattern(description, r"^\s*(auto|off|0*[1-9][0-9]*\s*[smhd])\s*$")
}

fn time_or_off(description: &str) -> Value {
    with_pattern(description, r"^\s*(off|0*[1-9][0-9]*\s*[smhd])\s*$")
}

fn with_pattern(description: &str, pattern: &str) -> Value {
    let pattern = format!("{pattern}|{VARIABLE}");
    json!({"description": description, "type": ["string", "null"], "pattern": pattern})
}

fn whole(description: &str, minimum: u64, maximum: u64) -> Value {
    bounded(description, "integer", minimum.into(), maximum.into())
}

fn number(description: &str, minimum: f64, maximum: f64) -> Value {
    bounded(description, "number", minimum.into(), maximum.into())
}

fn bounded(description: &str, kind: &str, minimum: Value, maximum: Value) -> Value {
    json!({
        "description": description,
        "type": [kind, "string", "null"],
        "minimum": minimum,
        "maximum": maximum,
        "pattern": VARIABLE,
    })
}

fn one_of(description: &str, names: &[&str]) -> Value {
    let mut choice = Map::new();
    choice.insert("description".into(), description.into());
    choice.insert(
        "anyOf".into(),
        json!([
            {"enum": names},
            {"type": "null"},
            {"type": "string", "pattern": VARIABLE},
        ]),
    );
    choice.into()
}

#[cfg(test)]
mod tests;
