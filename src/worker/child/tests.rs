//! The loop over a real socket, with the test at the daemon's end. What needs a checkpoint that
//! draws is tested with the whole daemon.

use std::{io::Write, path::Path};

use super::*;
use crate::modes::{CheckpointRef, LoraRef, OnLoraError, Size};

/// The daemon's end of a worker that has said that it is ready.
fn worker() -> (UnixStream, thread::JoinHandle<io::Result<()>>, mpsc::Receiver<()>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (hung_up, on_hang_up) = mpsc::channel();
    let serving = thread::spawn(move || serve(theirs, move || hung_up.send(()).unwrap()));
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(receive(&mut ours), FromWorker::Ready { device: "cpu".to_owned() });
    (ours, serving, on_hang_up)
}

fn receive(from: &mut UnixStream) -> FromWorker {
    protocol::read(from).unwrap().0
}

fn ask(socket: &mut UnixStream, message: &ToWorker) -> FromWorker {
    protocol::write(socket, message, &[]).unwrap();
    receive(socket)
}

fn spec(loras: &[&str]) -> PipelineSpec {
    let file = |name: &str| (name.to_owned(), format!("/nowhere/{name}").into());
    let (name, path) = file("sd15/missing.safetensors");
    let lora = |name: &&str| {
        let (name, path) = file(name);
        LoraRef { name, path, strength: 1.0, adapter_name: None }
    };
    let loras = loras.iter().map(lora).collect();
    PipelineSpec { loras, ..PipelineSpec::of(CheckpointRef { name, path }) }
}

#[test]
fn a_file_that_cannot_be_loaded_is_named_as_the_user_does() {
    let (mut socket, _serving, _) = worker();
    for _ in 0..2 {
        let job = JobId::new();
        let answer = ask(&mut socket, &ToWorker::Load { job, pipeline: spec(&[]) });
        let FromWorker::Failed { job: failed, error, .. } = answer else { panic!("{answer:?}") };
        assert_eq!((failed, error.kind), (job, WorkerErrorKind::UnusableModel));
        assert!(error.message.contains("sd15/missing.safetensors"), "{error}");
        assert!(!error.message.contains("/nowhere"), "{error}");
    }
}

#[test]
fn a_lora_that_cannot_be_merged_is_named() {
    let (mut socket, _serving, _) = worker();
    let tiny =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/tiny-sd15.safetensors");
    let checkpoint = CheckpointRef { name: "tiny.safetensors".to_owned(), path: tiny };
    let fail = PipelineSpec { checkpoint, ..spec(&["ink.safetensors", "lcm.safetensors"]) };
    let job = JobId::new();
    let answer = ask(&mut socket, &ToWorker::Load { job, pipeline: fail.clone() });
    let FromWorker::Failed { error, still_loaded, .. } = answer else { panic!("{answer:?}") };
    let unusable = WorkerErrorKind::UnusableLora { index: 0 };
    assert_eq!((error.kind, still_loaded), (unusable, true));
    assert!(error.message.starts_with("ink.safetensors: cannot be read"), "{error}");
    let pipeline = PipelineSpec { on_lora_error: OnLoraError::Skip, ..fail };
    protocol::write(&mut socket, &ToWorker::Load { job, pipeline }, &[]).unwrap();
    let report = loop {
        match receive(&mut socket) {
            FromWorker::Loading { .. } => {}
            FromWorker::Loaded { report, .. } => break report,
            answer => panic!("{answer:?}"),
        }
    };
    let skipped: Vec<_> = report.loras.iter().map(|lora| lora.skipped.is_some()).collect();
    assert_eq!(skipped, [true, true]);
}

#[test]
fn nothing_is_drawn_without_a_pipeline() {
    let (mut socket, _serving, _) = worker();
    let job = JobId::new();
    let request = GenerateRequest {
        size: Size { width: 64, height: 64 },
        steps: 1,
        ..GenerateRequest::of("m", "")
    };
    // A cancel for a job that is unknown, or not running any more, changes nothing.
    protocol::write(&mut socket, &ToWorker::Cancel { job }, &[]).unwrap();
    let answer = ask(&mut socket, &ToWorker::Generate { job, request });
    assert_eq!(
        answer,
        FromWorker::Failed { job, error: internal("no pipeline is loaded"), still_loaded: true }
    );
}

#[test]
fn the_end_of_the_connection_is_the_end_of_the_worker() {
    let (socket, serving, on_hang_up) = worker();
    drop(socket);
    on_hang_up.recv_timeout(Duration::from_secs(20)).expect("the hang-up is noticed");
    serving.join().unwrap().unwrap();
}

#[test]
fn rubbish_from_the_daemon_ends_the_worker_too() {
    let (mut socket, serving, on_hang_up) = worker();
    socket.write_all(&[0xff; 8]).unwrap();
    on_hang_up.recv_timeout(Duration::from_secs(20)).expect("it hangs up by itself");
    serving.join().unwrap().unwrap();
}

#[test]
fn a_panic_in_the_engine_is_an_internal_error() {
    let error = guarded(|| -> Result<(), _> { panic!("out of buffers") }).unwrap_err();
    assert_eq!(error.kind, WorkerErrorKind::Internal);
    assert!(!error.message.contains("buffers"), "{error}");
}
