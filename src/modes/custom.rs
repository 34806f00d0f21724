//! Custom jobs as far as they are declared: the section `custom_jobs`, and the names that are taken.

use std::path::PathBuf;

use super::Time;

/// The custom jobs that every daemon has, and what each is for. Nothing else may have their names.
pub const BUILT_IN_JOBS: [(&str, &str); 4] = [
    ("unload_all", "Gives back the memory of all that is loaded"),
    ("upscale", "Makes an image larger, as POST /superres does"),
    (
        "verify_checkpoint",
        "Reads every tensor of a mode's files, or of one model, and says what is wrong",
    ),
    ("warm_up", "Loads a mode and draws one step, so that the next request is fast"),
];

/// Whether that name stands for a built-in job.
pub fn is_built_in(name: &str) -> bool {
    BUILT_IN_JOBS.iter().any(|(built_in, _)| *built_in == name)
}

/// A program that a custom job runs: what the file names, and nothing that a client could add to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomCommand {
    /// A path; or a name that is looked for in `PATH`.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub timeout: Time,
    /// For those who list the custom jobs.
    pub description: Option<String>,
}

impl CustomCommand {
    pub const TIMEOUT: Time = Time::of_secs(60);
}
