//! The engine against diffusers, stage by stage and as whole images.
//!
//! The numbers in `golden/` were exported by `export.py` (see README.md beside it); the models are
//! the tiny one that the repository ships, and those that `recipe` makes. Tolerances are what f32
//! sums in another order need.

mod families;
mod golden;
mod images;
mod lora;
mod recipe;
mod schedulers;
mod stages;
mod upscalers;
