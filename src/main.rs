//! The binary: arguments in, exit code out.

use diffused::dispatcher::CustomJobs;

fn main() -> std::process::ExitCode {
    diffused::cli::main(CustomJobs::new())
}
