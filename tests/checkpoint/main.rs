//! Checkpoints in every layout and storage that people have them in, and what is refused of them.

mod facts;
mod folders;
#[path = "../parity/recipe.rs"]
mod recipe;
mod storage;
mod support;
mod tensors;
