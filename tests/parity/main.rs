//! The engine against diffusers, stage by stage and as whole images.
//!
//! The numbers in `golden/` were exported by `export.py` (see README.md beside it); the model is
//! the tiny one that the repository ships. Tolerances are what f32 sums in another order need.

mod golden;
mod images;
mod schedulers;
mod stages;
