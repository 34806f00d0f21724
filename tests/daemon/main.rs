//! The real binary over real HTTP, signals and files. Nothing in here sleeps for a fixed time:
//! it waits for something that can be observed.

mod api;
mod asking;
mod checkpoints;
mod commands;
mod configuration;
mod custom;
mod events;
mod families;
mod faults;
mod jobs;
mod life;
mod limits;
mod loras;
mod operations;
mod process;
mod queue;
#[path = "../parity/recipe.rs"]
#[expect(dead_code, reason = "only single files are needed here")]
mod recipe;
mod residency;
mod residency_api;
mod support;
