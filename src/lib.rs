//! `diffused` draws images: named *modes* from one YAML file, a queue, one accelerator.
//!
//! A map of the house, in the order in which a request walks through it:
//!
//! | room | what it does |
//! |---|---|
//! | [`cli`] | arguments in, exit code out: one file a subcommand |
//! | [`config`] | [`config::ModeConfigManager`]: `modes.yaml` → a valid, immutable [`modes::Modes`] |
//! | [`modes`], [`request`], [`job`] | plain data: what is declared, what is asked, what is being done |
//! | [`http`] | the API; the only room that names a status code |
//! | [`queue`] | the order of the work, decided purely |
//! | [`journal`] | what is written down, so that no accepted job is lost |
//! | [`dispatcher`] | takes the next job, drives the worker; the one writer of job state |
//! | [`worker`] | the child process that owns the device: protocol, supervision, the loop inside |
//! | [`vram`] | [`vram::VramRegistry`]: what is resident and what it costs |
//! | [`webhook`] | tells others over HTTP that a job has ended |
//! | [`engine`] | text encode → denoise → decode; knows nothing of all the above |
//! | [`image`] | RGB → PNG, JPEG, WebP, with the generation parameters embedded |
//!
//! The daemon process never opens the accelerator: [`worker`]'s child does, and may die without
//! taking the queue along. `tests/architecture.rs` holds who may use whom.

pub mod cli;
pub mod config;
pub mod dispatcher;
pub mod engine;
pub mod http;
pub mod image;
pub mod job;
pub mod journal;
pub mod modes;
pub mod queue;
pub mod request;
pub mod vram;
pub mod webhook;
pub mod worker;
