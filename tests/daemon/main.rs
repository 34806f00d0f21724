//! The real binary over real HTTP, signals and files. Nothing in here sleeps for a fixed time:
//! it waits for something that can be observed.

mod api;
mod asking;
mod checkpoints;
mod custom;
mod faults;
mod life;
mod loras;
mod process;
mod support;
