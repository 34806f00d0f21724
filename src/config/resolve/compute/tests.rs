use std::path::Path;

use super::*;
use crate::{
    config::{
        raw,
        resolve::{Resolved, resolve_beside},
    },
    modes::{Device, EngineChoice, Precision},
};

const MODES: &str = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x}}\n";

fn resolved(text: &str, beside: Beside) -> Result<Resolved, String> {
    let root = raw::parse(&format!("{MODES}{text}\n")).unwrap();
    let resolved =
        resolve_beside(&root, Path::new("modes.yaml").into(), Path::new("/home/x"), beside);
    resolved.map_err(|found| lines(&found))
}

fn lines(found: &[Diagnostic]) -> String {
    found.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_key_is_optional() {
    let (other, device) = (Compute::default(), Device::Cpu);
    for (text, expected) in [
        ("", other),
        ("engine:\ndevice: ~\nprecision: auto", other),
        ("engine: candle", Compute { engine: EngineChoice::Candle, ..other }),
        ("device: cpu", Compute { device, ..other }),
        ("precision: fp32", Compute { precision: Precision::Fp32, ..other }),
    ] {
        let Resolved { modes, warnings, .. } = resolved(text, Beside::default()).unwrap();
        assert_eq!((modes.compute, warnings), (expected, vec![]), "{text}");
    }
}

#[test]
fn wrong_words_are_named() {
    let text = "engine: torch\ndevice: gpu\nprecision: fp8";
    insta::assert_snapshot!(resolved(text, Beside::default()).unwrap_err(), @"
    modes.yaml:4:9: error: engine: there is no engine 'torch'; did you mean 'libtorch'? (there are: auto, candle, libtorch)
    modes.yaml:5:9: error: device: there is no device 'gpu': write auto, cpu, cuda (the first card), cuda:1 or metal
    modes.yaml:6:12: error: precision: there is no precision 'fp8'; did you mean 'fp16'? (there are: auto, fp32, bf16, fp16)
    ");
}

#[cfg(not(any(feature = "libtorch", feature = "cuda", feature = "metal")))]
#[test]
fn what_is_not_built_in_is_an_error_where_it_is_asked_for() {
    let asking = |wish| Beside { wish, running: None };
    insta::assert_snapshot!(resolved("engine: libtorch", Beside::default()).unwrap_err(), @"modes.yaml:4:9: error: engine: libtorch is not built into this program; build it with --features libtorch");
    insta::assert_snapshot!(resolved("device: cuda:1", Beside::default()).unwrap_err(), @"modes.yaml:4:9: error: device: cuda:1 is not built into this program; build it with --features libtorch, or with --features cuda");
    insta::assert_snapshot!(resolved("precision: bf16", Beside::default()).unwrap_err(), @"modes.yaml:4:12: error: precision: bf16 is not what candle computes in on a CPU, but fp32; build it with --features libtorch");
    let wish = ComputeWish { device: Some(Device::Cuda(0)), ..ComputeWish::default() };
    insta::assert_snapshot!(resolved("device: cpu", asking(wish)).unwrap_err(), @"--device or DEVICE: error: device: cuda:0 is not built into this program; build it with --features libtorch, or with --features cuda");
    // What is named elsewhere comes first, and the file's is not looked at.
    let wish = ComputeWish { device: Some(Device::Cpu), ..ComputeWish::default() };
    let modes = resolved("device: cuda:1", asking(wish)).unwrap().modes;
    assert_eq!(modes.compute.device, Device::Cpu);
}

#[test]
fn a_change_is_said_to_count_later() {
    let candle = Compute { engine: EngineChoice::Candle, ..Compute::default() };
    let beside = |running| Beside { wish: ComputeWish::default(), running: Some(running) };
    let warnings = |text: &str, running| lines(&resolved(text, beside(running)).unwrap().warnings);
    assert_eq!(warnings("engine: candle", candle), "");
    insta::assert_snapshot!(warnings("engine: auto\ndevice: cpu", candle), @"
    modes.yaml:4:9: warning: engine: 'auto' counts from the daemon's next start on; until then it is 'candle'
    modes.yaml:5:9: warning: device: 'cpu' counts from the daemon's next start on; until then it is 'auto'
    ");
    // The line is gone.
    insta::assert_snapshot!(warnings("", candle), @"modes.yaml:1:1: warning: engine: 'auto' counts from the daemon's next start on; until then it is 'candle'");
    // What the file says is not what holds.
    let wish = ComputeWish { engine: Some(EngineChoice::Candle), ..ComputeWish::default() };
    let Resolved { warnings, .. } =
        resolved("engine: auto", Beside { wish, running: Some(candle) }).unwrap();
    assert_eq!(warnings, []);
}
