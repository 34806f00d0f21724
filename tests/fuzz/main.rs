//! Whatever arrives from outside is read without a panic, and what comes of it keeps its promises.
//!
//! Some hundred cases each in the ordinary run. For longer, ask for more:
//!
//! ```text
//! PROPTEST_CASES=1000000 cargo test --release --test fuzz prompt::
//! ```
//!
//! A case that fails is made small, printed, and its seed is written beside its source
//! (`*.regressions`), from where later runs try it first. A seed means a case only as long as the
//! strategy is the same: write the case down in a table beside the code that is mended.
//!
//! One file per format. A new one needs a strategy that is mostly right (mutate something real; pure
//! noise only meets the first check) and what must hold of every outcome.

mod allocations;
#[path = "../../examples/random_checkpoint/architecture/mod.rs"]
#[expect(dead_code, reason = "here only names and shapes matter")]
mod architecture;
mod checkpoint;
mod config;
mod corpus;
mod folder;
mod lora;
mod prompt;
mod request;

use proptest::test_runner::{Config, FileFailurePersistence};

/// As many cases as `PROPTEST_CASES` says, or these.
fn cases(number: u32) -> Config {
    let default = Config::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    Config {
        cases: if asked { default.cases } else { number },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..default
    }
}
