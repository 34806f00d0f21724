//! The real binary over real HTTP, signals and files. Nothing in here sleeps for a fixed time:
//! it waits for something that can be observed.

mod api;
mod asking;
mod bodies;
mod browsers;
mod checkpoints;
mod commands;
mod commands_end;
mod commands_of_jobs;
mod compute;
mod configuration;
mod connections;
mod crashes;
mod custom;
mod durable;
mod editing_limits;
mod events;
mod families;
mod faults;
mod inventory_files;
mod jobs;
mod journal_damage;
mod life;
mod limits;
mod log_lines;
mod loras;
mod memory_bounds;
mod older_journals;
mod operations;
#[cfg(target_os = "linux")]
mod places;
mod process;
mod queue;
#[path = "../parity/recipe.rs"]
#[expect(dead_code, reason = "only single files are needed here")]
mod recipe;
mod residency;
mod residency_api;
mod retained;
mod sandbox;
mod secrets;
mod silence;
mod slow_receivers;
mod superres;
mod support;
mod webhooks;
