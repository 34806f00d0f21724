//! Which of the daemon's environment variables its worker inherits. Pure: names are told to it.
//!
//! The daemon's environment holds keys (its own, and whatever the machine's other services use). The
//! worker reads files of strangers, so it gets only the variables that its libraries listen to.

/// Whole names.
const NAMES: &[&str] = &[
    // Where CUDA keeps compiled kernels.
    "HOME",
    "TMPDIR",
    // Messages and times in the log.
    "LANG",
    "TZ",
    // Drawing without CUDA graphs.
    "DIFFUSED_CUDA_GRAPHS",
];

/// Beginnings of names.
const PREFIXES: &[&str] = &[
    "LC_",
    // RUST_LOG, RUST_BACKTRACE.
    "RUST_",
    // The C library's allocator.
    "GLIBC_",
    "MALLOC_",
    // Where libraries are found, and which are loaded first (other allocators, profilers).
    "LD_",
    "DYLD_",
    // How many threads compute.
    "RAYON_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    // Cards and the libraries that compute on them.
    "CUDA_",
    "CUDNN_",
    "CUBLAS_",
    "NVIDIA_",
    "METAL_",
    "MTL_",
    "PYTORCH_",
    "TORCH_",
    // Sanitizers and coverage.
    "ASAN_",
    "LSAN_",
    "TSAN_",
    "LLVM_PROFILE_",
];

/// Parts of names that hold secrets, whatever they begin with.
const SECRETS: &[&str] = &["KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL"];

pub fn is_inherited(name: &str) -> bool {
    let is_known = NAMES.contains(&name) || PREFIXES.iter().any(|it| name.starts_with(it));
    is_known && !SECRETS.iter().any(|it| name.contains(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_inherits_its_libraries_settings_and_no_secrets() {
        for (name, expected) in [
            ("RUST_LOG", true),
            ("RAYON_NUM_THREADS", true),
            ("LD_LIBRARY_PATH", true),
            ("CUDA_VISIBLE_DEVICES", true),
            ("LC_ALL", true),
            ("HOME", true),
            ("HOMEBREW_PREFIX", false),
            ("PATH", false),
            ("DIFFUSED_ADMIN_KEY", false),
            ("DIFFUSED_ADMIN_KEY_FILE", false),
            ("DIFFUSED_URL", false),
            ("AWS_SECRET_ACCESS_KEY", false),
            ("CUDA_API_TOKEN", false),
            ("NOTIFY_SOCKET", false),
            ("", false),
        ] {
            assert_eq!(is_inherited(name), expected, "{name}");
        }
    }
}
