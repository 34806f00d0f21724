//! The seam to the backends.
pub mod cpu;
