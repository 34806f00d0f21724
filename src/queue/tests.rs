//! The queue as tables. A line is written in words: `b` is a generation in mode b, `>b` the switch
//! that was put before it, `!b` a switch by a user, `~b` one by a reload, `*` a custom job and `%` that all is unloaded; `b+x`
//! is the mode with the LoRA x, which a request has brought along or the configuration has.

mod fair;
mod order;

use super::*;
use crate::{
    job::Unload,
    modes::{CheckpointRef, Defaults, LoraRef, Memory, Mode, PipelineSpec, Size, Timeout, Watch},
    request::{EncodedImage, GenerateRequest, Source, Webhook},
};

fn pipeline(word: &str) -> PipelineSpec {
    let (mode, loras) = word.split_once('+').map_or((word, None), |(mode, x)| (mode, Some(x)));
    let name = format!("{mode}.safetensors");
    let checkpoint = CheckpointRef { path: name.clone().into(), name };
    let lora = |name: &str| LoraRef {
        name: name.to_owned(),
        path: name.into(),
        strength: 1.0,
        adapter_name: None,
    };
    PipelineSpec { loras: loras.into_iter().map(lora).collect(), ..PipelineSpec::of(checkpoint) }
}

fn mode_of(word: &str) -> String {
    word.split('+').next().unwrap().to_owned()
}

fn target(word: &str) -> Target {
    Target { mode: mode_of(word), pipeline: pipeline(word) }
}

fn job(word: &str) -> Job {
    let switch = |word: &str, asked_by| Job::ModeSwitch {
        mode: mode_of(word),
        pipeline: pipeline(word),
        asked_by,
        timeout_secs: None,
    };
    match word.split_at(1) {
        ("!", mode) => switch(mode, SwitchOrigin::User),
        (">", mode) => switch(mode, SwitchOrigin::Generation),
        ("~", mode) => switch(mode, SwitchOrigin::Reload),
        ("%", _) => Job::Unload { what: Unload::All },
        ("*", _) => Job::Custom { name: "test".to_owned(), args: Default::default() },
        _ => Job::Generation { request: request(&mode_of(word)), pipeline: pipeline(word) },
    }
}

fn request(mode: &str) -> GenerateRequest {
    GenerateRequest { size: Size { width: 64, height: 64 }, ..GenerateRequest::of(mode, "") }
}

fn word(job: &Job) -> String {
    match job {
        Job::Generation { request, pipeline } => with_loras(&request.mode, pipeline),
        Job::ModeSwitch { mode, pipeline, asked_by, .. } => {
            let sign = match asked_by {
                SwitchOrigin::User => '!',
                SwitchOrigin::Generation => '>',
                SwitchOrigin::Reload => '~',
            };
            format!("{sign}{}", with_loras(mode, pipeline))
        }
        Job::Unload { .. } => "%".to_owned(),
        Job::Load { .. } | Job::Custom { .. } | Job::Upscale { .. } => "*".to_owned(),
    }
}

fn with_loras(mode: &str, pipeline: &PipelineSpec) -> String {
    pipeline.loras.iter().fold(mode.to_owned(), |word, lora| word + "+" + &lora.name)
}

fn words<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    entries.into_iter().map(|entry| word(&entry.job)).collect::<Vec<_>>().join(" ")
}

fn queue(limit: usize, loaded: &str) -> Queue {
    let mut queue = Queue::new(limit, "a".to_owned());
    queue.set_loaded((!loaded.is_empty()).then(|| target(loaded)));
    queue
}

/// Submits the words in turn; those that are refused leave no trace.
fn submit_all(queue: &mut Queue, words: &str) {
    for word in words.split_whitespace() {
        let _ = queue.submit(job(word), Terms::default(), JobId::new);
    }
}

#[test]
fn waiting_arguments_take_a_bounded_amount_of_memory() {
    let custom = |bytes: usize| Job::Custom {
        name: "test".to_owned(),
        // And two quotes.
        args: serde_json::Value::from("x".repeat(bytes - 2)).into(),
    };
    let mut queue = queue(64, "a");
    let mut submit = |job| queue.submit(job, Terms::default(), JobId::new).map(|_| ());
    for (job, expected) in [
        (custom(MAX_ARGUMENT_BYTES / 2), Ok(())),
        (custom(MAX_ARGUMENT_BYTES / 2), Ok(())),
        (custom(10), Err(Refused::TooManyArguments)),
        (job("a"), Ok(())),
    ] {
        assert_eq!(submit(job), expected);
    }
    queue.start_next();
    assert!(queue.submit(custom(10), Terms::default(), JobId::new).is_ok());
}

#[test]
fn waiting_images_take_a_bounded_amount_of_memory() {
    let quarter = EncodedImage(vec![0; MAX_SOURCE_BYTES / 4].into());
    let eighth = EncodedImage(vec![0; MAX_SOURCE_BYTES / 8].into());
    let drawn_over = |image: &EncodedImage, mask: Option<&EncodedImage>| {
        let (image, mask) = (image.clone(), mask.cloned());
        let source = Some(Source { image, mask, denoise_strength: 0.5 });
        Job::Generation {
            request: GenerateRequest { source, ..request("a") },
            pipeline: pipeline("a"),
        }
    };
    let mut queue = queue(64, "a");
    let mut submit = |job| queue.submit(job, Terms::default(), JobId::new).map(|_| ());
    for (job, expected) in [
        (drawn_over(&quarter, None), Ok(())),
        (drawn_over(&eighth, Some(&eighth)), Ok(())),
        (drawn_over(&quarter, Some(&quarter)), Ok(())),
        (drawn_over(&eighth, None), Err(Refused::TooManyImages)),
        (job("a"), Ok(())),
    ] {
        assert_eq!(submit(job), expected);
    }
    // What runs does not wait any more.
    queue.start_next();
    assert!(queue.submit(drawn_over(&quarter, None), Terms::default(), JobId::new).is_ok());
}

#[test]
fn a_generation_brings_the_switch_that_it_needs() {
    for (loaded, submitted, line) in [
        ("", "a", ">a a"),
        ("a", "a a", "a a"),
        ("a", "b", ">b b"),
        ("a", "b b a", ">b b b >a a"),
        ("a", "* b * b", "* >b b * b"),
        ("a", "!b b", "!b b"),
        ("a", "!b a", "!b >a a"),
        ("a", "b !c c", ">b b !c c"),
        // A request's LoRAs are for that request alone.
        ("a", "a+x a+x a+y a", ">a+x a+x a+x >a+y a+y >a a"),
        ("a+x", "a", ">a a"),
        ("a+x", "a+x", "a+x"),
        ("a", "a+x !a a", ">a+x a+x !a a"),
    ] {
        let mut queue = queue(64, loaded);
        submit_all(&mut queue, submitted);
        assert_eq!(words(&queue.waiting), line, "loaded '{loaded}', submitted '{submitted}'");
    }
}

#[test]
fn what_the_running_job_leaves_loaded_counts() {
    // "a" is loaded; (submitted, and its first job started; submitted then; line behind it)
    for (running, submitted, line) in
        [("b", "b", "b b"), ("!b", "b", "b"), ("!b", "a", ">a a"), ("*", "a b", "a >b b")]
    {
        let mut queue = queue(64, "a");
        submit_all(&mut queue, running);
        queue.start_next();
        submit_all(&mut queue, submitted);
        assert_eq!(words(&queue.waiting), line, "running '{running}', submitted '{submitted}'");
    }
}

#[test]
fn the_same_mode_over_another_file_is_another_target() {
    let mut queue = queue(64, "a");
    let generation = Job::Generation { request: request("a"), pipeline: pipeline("a-v2") };
    let submitted = queue.submit(generation, Terms::default(), JobId::new).unwrap();
    assert_eq!(words(&submitted.switch), ">a");
    assert_eq!(words(&queue.waiting), ">a a");
}

#[test]
fn a_switch_and_its_generation_go_in_together_or_not_at_all() {
    // (limit, submitted before, submitted last, whether that is refused, line)
    for (limit, before, last, refused, line) in [
        (3, "a a", "a", false, "a a a"),
        (3, "a a a", "a", true, "a a a"),
        (3, "a", "b", false, "a >b b"),
        (3, "a a", "b", true, "a a"),
        (3, "a a", "*", false, "a a *"),
        (3, "a a", "!b", false, "a a !b"),
        (3, "a a *", "!b", true, "a a *"),
        (1, "", "b", false, ">b b"),
    ] {
        let mut queue = queue(limit, "a");
        submit_all(&mut queue, before);
        let result = queue.submit(job(last), Terms::default(), JobId::new);
        assert_eq!(result.err(), refused.then_some(Refused::Full), "'{before}' then '{last}'");
        assert_eq!(words(&queue.waiting), line, "'{before}' then '{last}'");
    }
}

#[test]
fn cancelling_takes_along_the_switches_that_nobody_needs_any_more() {
    // "a" is loaded; (submitted, the index that is cancelled, taken out, line)
    for (submitted, index, removed, line) in [
        ("a a", 0, "a", "a"),
        ("b", 1, "b >b", ""),
        ("b b", 1, "b", ">b b"),
        ("b b", 2, "b", ">b b"),
        ("b * b", 1, "b", ">b * b"),
        ("b *", 1, "b >b", "*"),
        // Without b there is no way back to a either.
        ("b a", 1, "b >b >a", "a"),
        ("b c", 1, "b >b", ">c c"),
        ("b !c c", 1, "b >b", "!c c"),
        ("a+x a", 1, "a+x >a+x >a", "a"),
        ("a+x a a+x", 3, "a >a >a+x", ">a+x a+x a+x"),
        // A user's switch is a wish of its own.
        ("!b b", 1, "b", "!b"),
        ("!b b", 0, "!b", "b"),
        ("*", 0, "*", ""),
    ] {
        let mut queue = queue(64, "a");
        submit_all(&mut queue, submitted);
        let id = queue.waiting[index].id;
        let taken_out = queue.cancel(id);
        let context = format!("'{submitted}' without its job {index}");
        assert_eq!(words(&taken_out), removed, "{context}");
        assert_eq!(words(&queue.waiting), line, "{context}");
    }
}

#[test]
fn what_does_not_wait_cannot_be_taken_out() {
    let mut queue = queue(64, "a");
    let id = queue.submit(job("a"), Terms::default(), JobId::new).unwrap().job.id;
    queue.start_next();
    assert!(queue.cancel(id).is_empty());
    assert!(queue.cancel(JobId::new()).is_empty());
}

#[test]
fn one_job_runs_at_a_time_in_the_order_of_arrival() {
    let mut queue = queue(64, "a");
    submit_all(&mut queue, "a * b");
    let mut order = Vec::new();
    while let Some(entry) = queue.start_next().cloned() {
        assert_eq!(queue.start_next(), None, "a second one beside {entry:?}");
        order.push(entry);
        queue.finish_running(true);
    }
    assert_eq!(words(&order), "a * >b b");
}

#[test]
fn a_users_switch_selects_from_its_arrival_until_it_fails() {
    let mut queue = queue(64, "a");
    submit_all(&mut queue, "!b b");
    assert_eq!(queue.selected_mode(), "b", "while it waits");
    queue.start_next();
    assert_eq!(queue.selected_mode(), "b", "while it runs");
    queue.finish_running(false);
    assert_eq!(queue.selected_mode(), "a", "after it failed");

    submit_all(&mut queue, "!c");
    while queue.start_next().is_some() {
        queue.finish_running(true);
    }
    assert_eq!(queue.selected_mode(), "c", "after it succeeded");

    submit_all(&mut queue, "!d");
    let id = queue.waiting[0].id;
    queue.cancel(id);
    assert_eq!(queue.selected_mode(), "c", "after the next one was cancelled");
}

#[test]
fn a_generations_switch_selects_nothing() {
    let mut queue = queue(64, "a");
    for word in ["b", "b+x"] {
        submit_all(&mut queue, word);
        assert_eq!(queue.selected_mode(), "a");
        while queue.start_next().is_some() {
            queue.finish_running(true);
        }
        assert_eq!(queue.selected_mode(), "a");
    }
}

#[test]
fn a_switch_to_what_is_there_needs_no_job() {
    // (loaded, submitted before, the switch, whether it is needless, selected afterwards)
    for (loaded, before, switch, needless, selected) in [
        ("", "", "!a", false, "a"),
        ("a", "", "!a", true, "a"),
        // That one may fail, or be given up.
        ("a", "!b", "!b", false, "b"),
        ("a", "%", "!a", false, "a"),
        ("a", "*", "!a", true, "a"),
        ("a", "b", "!a", false, "a"),
        ("a", "a", "!b", false, "b"),
        // Loaded for a generation's sake: from now on it is selected too.
        ("b", "", "!b", true, "b"),
        ("b", "b", "!b", true, "b"),
        // Not loaded yet: the selection must wait, and fail, with the loading.
        ("a", "b", "!b", false, "b"),
        // Loaded with a request's LoRA, it is not the mode itself.
        ("a+x", "", "!a", false, "a"),
        ("a", "a+x", "!a", false, "a"),
        // Loaded and selected, but another one is on its way.
        ("a", "!b", "!a", false, "a"),
    ] {
        let mut queue = queue(64, loaded);
        submit_all(&mut queue, before);
        let result = queue.submit(job(switch), Terms::default(), JobId::new);
        let context = format!("'{loaded}' loaded, '{before}' waiting, then '{switch}'");
        assert_eq!(result.err(), needless.then_some(Refused::AlreadyLoaded), "{context}");
        assert_eq!(queue.selected_mode(), selected, "{context}");
    }
}

/// Modes with these pipelines; the first is the default one.
fn modes(words: &str) -> Modes {
    let mode = |word: &str| Mode {
        name: mode_of(word),
        pipeline: pipeline(word),
        defaults: Defaults::default(),
        pinned: false,
        preload: false,
        metadata: serde_json::Map::new(),
        timeout: Timeout::Off,
    };
    let modes: Vec<Mode> = words.split_whitespace().map(mode).collect();
    Modes {
        default_mode: modes[0].name.clone(),
        model_root: "models".into(),
        lora_root: "loras".into(),
        max_pixels: 1 << 20,
        watch: Watch::Auto,
        memory: Memory::default(),
        order: Order::default(),
        jobs: Default::default(),
        modes: modes.into_iter().map(|mode| (mode.name.clone(), mode.into())).collect(),
        custom_jobs: Default::default(),
        webhooks: Default::default(),
        http: Default::default(),
        superres: None,
        timeout: Timeout::Off,
        compute: Default::default(),
    }
}

#[test]
fn a_change_of_the_modes_reloads_what_will_be_loaded_behind_all_that_waits() {
    // Loaded, waiting; the modes one after the other; waiting then, and the selected mode.
    for (loaded, waiting, changes, expected, selected) in [
        ("a", "", &["a b", "a+x b"][..], "~a+x", "a"),
        ("a", "a * a", &["a b", "a+x b"], "a * a ~a+x", "a"),
        ("a", "b", &["a b", "a+x b"], ">b b", "a"),
        ("a", "a b", &["a b", "a b+x"], "a >b b ~b+x", "a"),
        ("a", "", &["a b", "a b+x"], "", "a"),
        ("a", "", &["a", "a b"], "", "a"),
        ("", "", &["a b", "a+x b"], "", "a"),
        // What a request has brought along is none of the configuration's business.
        ("a+r", "", &["a b", "a b+x"], "", "a"),
        ("a+r", "", &["a b", "a+x b"], "~a+x", "a"),
        // A mode that is gone serves what waits for it; then comes the default one.
        ("b", "b", &["a b", "a"], "b ~a", "a"),
        ("a", "!b", &["a b", "a"], "!b ~a", "b"),
        ("a", "", &["a b", "b"], "~b", "b"),
        ("a", "", &["a b", "b a"], "", "a"),
        // One change upon the other.
        ("a", "a", &["a", "a+x", "a+y"], "a ~a+y", "a"),
        ("a", "a", &["a", "a+x", "a"], "a", "a"),
        ("a", "a", &["a b", "a+x b", "a+x b+x"], "a ~a+x", "a"),
        ("a", "a", &["b a", "b", "b+x"], "a ~b+x", "b"),
    ] {
        let mut queue = queue(9, loaded);
        submit_all(&mut queue, waiting);
        for pair in changes.windows(2) {
            let (old, new) = (modes(pair[0]), modes(pair[1]));
            queue.configure(&old.diff(&new), &new, JobId::new);
        }
        let case = format!("{loaded} | {waiting} | {changes:?}");
        assert_eq!(words(&queue.waiting), expected, "{case}");
        assert_eq!(queue.selected_mode(), selected, "{case}");
    }
}

#[test]
fn what_is_submitted_after_a_change_follows_it() {
    let mut queue = queue(3, "a");
    submit_all(&mut queue, "a a a");
    let change = |queue: &mut Queue, old: &str, new: &str| {
        let (old, new) = (modes(old), modes(new));
        queue.configure(&old.diff(&new), &new, JobId::new)
    };
    let first = change(&mut queue, "a", "a+x"); // though the queue is full
    assert_eq!(words(&queue.waiting), "a a a ~a+x");
    let second = change(&mut queue, "a+x", "a+y");
    assert_eq!(second.superseded, first.switch);
    queue.drain();
    change(&mut queue, "a", "a+x");
    submit_all(&mut queue, "a+x");
    assert_eq!(words(&queue.waiting), "~a+x a+x");
    change(&mut queue, "a+x", "a+y");
    assert_eq!(words(&queue.waiting), "~a+x a+x ~a+y");
}

#[test]
fn what_follows_a_failed_switch_can_be_taken_out() {
    for (waiting, taken, left) in [
        ("", "", ""),
        ("b b", "b b", ""),
        ("b a", "b", ">a a"),
        ("a b", "", ">a a >b b"),
        ("b * b", "b", "* b"),
        ("b b+x b", "b", ">b+x b+x >b b"),
    ] {
        let mut queue = queue(64, "a");
        submit_all(&mut queue, "!b");
        queue.start_next();
        submit_all(&mut queue, waiting);
        queue.finish_running(false);
        let followers = queue.take_followers(&target("b"));
        assert_eq!(
            (words(&followers), words(&queue.waiting)),
            (taken.into(), left.into()),
            "{waiting}"
        );
    }
}

#[test]
fn the_end_of_a_switch_that_a_job_brings_along_is_told_to_nobody() {
    let webhook = Some(Webhook { url: "http://x".to_owned(), secret: None });
    let told = |priority| Terms { priority, webhook: webhook.clone(), ..Terms::default() };
    let mut queue = queue(9, "a");
    let first = queue.submit(job("a"), told(0), JobId::new).unwrap();
    assert_eq!((first.switch, &first.job.terms.webhook), (None, &webhook));
    // It comes before that one, which needs a switch of its own now.
    let second = queue.submit(job("b"), told(1), JobId::new).unwrap();
    assert_eq!(words(&queue.waiting), ">b b >a a");
    assert_eq!(second.switch.unwrap().terms.webhook, None);
    assert_eq!(second.job.terms.webhook, webhook);
    let added: Vec<_> = second.mended.added.iter().map(|entry| &entry.terms.webhook).collect();
    assert_eq!(added, [&None]);
}
