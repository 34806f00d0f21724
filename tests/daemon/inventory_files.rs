//! Model files that change while the inventory looks into them.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use serde_json::json;

use crate::support::{Daemon, shipped_checkpoint};

/// So often a file is cut short and written anew while it is looked into.
const COPIES: u32 = 300;

/// A file of tensors with a header of some megabytes, which takes a while to read.
fn large_header() -> Vec<u8> {
    let tensors = (0..40_000).map(|at| {
        (
            format!("lora_unet_{at}.weight"),
            json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        )
    });
    let header = serde_json::Value::Object(tensors.collect()).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

/// A daemon that mapped the file would die of SIGBUS within a few rounds.
#[test]
fn a_file_that_is_replaced_while_it_is_looked_into_harms_nobody() {
    let mut daemon = Daemon::start();
    let models = daemon.path().join("models");
    let contents = [large_header(), fs::read(shipped_checkpoint()).unwrap()];
    let files = ["header.safetensors", "copy.safetensors"].map(|name| models.join(name));
    let (copies, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for (file, content) in files.iter().zip(&contents) {
            let (copies, is_over) = (&copies, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    fs::write(file, content).unwrap(); // cut short first, as `cp` does
                    copies.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let askers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while answers < 20 || copies.load(Ordering::Relaxed) < COPIES {
                        let Ok(response) =
                            ureq::get(format!("{}/api/inventory", daemon.url)).call()
                        else {
                            return false;
                        };
                        assert_eq!(response.status(), 200);
                        answers += 1;
                    }
                    true
                })
            })
            .collect();
        let answered: Vec<bool> = askers.into_iter().map(|it| it.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(answered, [true; 3], "the daemon died");
    });
    // Once nobody writes to it, it is what it is.
    let inventory = daemon.get("/api/inventory").json();
    let checkpoints = inventory["checkpoints"].as_array().unwrap();
    assert!(checkpoints.iter().any(|it| it["name"] == "copy.safetensors"), "{inventory}");
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
}
