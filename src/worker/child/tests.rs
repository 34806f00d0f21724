//! The loop over a real socket, with the test at the daemon's end. What needs a checkpoint that
//! draws is tested with the whole daemon.

use std::{
    io::Write,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{
    modes::{CheckpointRef, LoraRef, OnLoraError, Size},
    vram::ledger::{Computing, Held, Segment, shares},
    worker::protocol::{LoadReport, WorkerErrorKind},
};

/// What is allocated is counted for the whole process: one test at a time that looks at it.
static ALLOCATING: Mutex<()> = Mutex::new(());

/// The daemon's end of a worker that has said that it is ready.
fn worker() -> (UnixStream, thread::JoinHandle<io::Result<ExitCode>>, mpsc::Receiver<()>) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (hung_up, on_hang_up) = mpsc::channel();
    let serving = thread::spawn(move || {
        serve(theirs, Granted::everything(), || Ok(Backend::Cpu), move || hung_up.send(()).unwrap())
    });
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let text = str::to_owned;
    let computing = Computing {
        engine: text("candle"),
        device: text("cpu"),
        precision: text("fp32"),
        name: None,
    };
    assert_eq!(receive(&mut ours), FromWorker::Ready { computing });
    (ours, serving, on_hang_up)
}

fn receive(from: &mut UnixStream) -> FromWorker {
    loop {
        match protocol::read(from).unwrap().0 {
            FromWorker::Alive => {}
            message => return message,
        }
    }
}

fn ask(socket: &mut UnixStream, message: &ToWorker) -> FromWorker {
    protocol::write(socket, message, &[]).unwrap();
    receive(socket)
}

fn prepare(job: JobId, pipeline: PipelineSpec) -> ToWorker {
    ToWorker::Prepare { job, id: PipelineId(1), pipeline, keep: Keep::default() }
}

/// Loads that pipeline under that name, beside what is there.
fn load(socket: &mut UnixStream, id: PipelineId, pipeline: PipelineSpec) -> (LoadReport, Held) {
    let (job, keep) = (JobId::new(), Keep::default());
    let answer = ask(socket, &ToWorker::Prepare { job, id, pipeline, keep });
    let FromWorker::Prepared { estimate, .. } = answer else { panic!("{answer:?}") };
    let load = ToWorker::Load { job, unload: vec![], limit_bytes: u64::MAX, verify: true };
    protocol::write(socket, &load, &[]).unwrap();
    loop {
        match receive(socket) {
            FromWorker::Loading { .. } => {}
            FromWorker::Loaded { report, held, .. } => {
                let sum = |segments: &[Segment]| segments.iter().map(|it| it.bytes).sum::<u64>();
                assert_eq!(sum(&estimate.segments), sum(&held.segments), "as it was foretold");
                assert!(estimate.components.iter().all(|it| it.dtype == "fp32"), "{estimate:?}");
                let Held { allocated_bytes, reserved_bytes, peak_bytes, .. } = held;
                assert!(allocated_bytes >= held.weights_bytes(), "{held:?}");
                assert!(reserved_bytes >= allocated_bytes && peak_bytes > 0, "{held:?}");
                return (report, held);
            }
            answer => panic!("{answer:?}"),
        }
    }
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
        let answer = ask(&mut socket, &prepare(job, spec(&[])));
        let FromWorker::Failed { job: failed, error, .. } = answer else { panic!("{answer:?}") };
        assert_eq!((failed, error.kind), (job, WorkerErrorKind::UnusableModel));
        assert!(error.message.contains("sd15/missing.safetensors"), "{error}");
        assert!(!error.message.contains("/nowhere"), "{error}");
    }
}

fn tiny() -> CheckpointRef {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/tiny-sd15.safetensors");
    CheckpointRef { name: "tiny.safetensors".to_owned(), path }
}

#[test]
fn pipelines_stand_beside_each_other_and_share_what_is_the_same() {
    let _alone = ALLOCATING.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut socket, _serving, _) = worker();
    let [first, second] = [PipelineId(7), PipelineId(9)];
    let (alone, held) = load(&mut socket, first, PipelineSpec::of(tiny()));
    let all = held.weights_bytes();
    assert_eq!((held.pipelines, shares(&held.segments, first).own_bytes), (vec![first], all));
    assert!(alone.measured_bytes >= all);
    // The same but for its name for what it predicts: not a number of it is read again.
    let prediction = Some(crate::modes::Prediction::V);
    let (_, held) =
        load(&mut socket, second, PipelineSpec { prediction, ..PipelineSpec::of(tiny()) });
    assert_eq!((&held.pipelines, held.weights_bytes()), (&vec![first, second], all));
    for id in [first, second] {
        assert_eq!(shares(&held.segments, id).shared_bytes, all);
    }
    for (gone, left) in [(first, vec![second]), (second, vec![])] {
        let answer = ask(&mut socket, &ToWorker::Unload { pipelines: vec![gone], upscaler: false });
        let FromWorker::Unloaded { held } = answer else { panic!("{answer:?}") };
        assert_eq!(held.weights_bytes(), if left.is_empty() { 0 } else { all });
        assert_eq!(held.pipelines, left);
    }
}

#[test]
fn a_lora_that_cannot_be_merged_is_named() {
    let _alone = ALLOCATING.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut socket, serving, _) = worker();
    let fail = PipelineSpec { checkpoint: tiny(), ..spec(&["ink.safetensors", "lcm.safetensors"]) };
    let job = JobId::new();
    let answer = ask(&mut socket, &prepare(job, fail.clone()));
    let FromWorker::Failed { error, held, .. } = answer else { panic!("{answer:?}") };
    let unusable = WorkerErrorKind::UnusableLora { index: 0 };
    assert_eq!((error.kind, held), (unusable, None));
    assert!(error.message.starts_with("ink.safetensors: cannot be read"), "{error}");
    let pipeline = PipelineSpec { on_lora_error: OnLoraError::Skip, ..fail };
    let (report, _) = load(&mut socket, PipelineId(1), pipeline);
    let skipped: Vec<_> = report.loras.iter().map(|lora| lora.skipped.is_some()).collect();
    assert_eq!(skipped, [true, true]);
    drop(socket);
    serving.join().unwrap().unwrap();
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
    let (pipeline, limit_bytes) = (PipelineId(1), u64::MAX);
    let answer = ask(&mut socket, &ToWorker::Generate { job, pipeline, request, limit_bytes });
    let error = internal("the pipeline is not loaded");
    assert_eq!(answer, FromWorker::Failed { job, error, held: None });
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
