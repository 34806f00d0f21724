//! STAND-IN until the real one is merged.

pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
