//! Priorities and `affinity`: as tables, and over random days. In the words of this module's head,
//! with `b@5` for a priority and `x/b` for a client; `+10` lets ten seconds go by.

use std::collections::BTreeSet;

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;
use crate::modes::{Scheduling, Time};

pub const FIFO: Order =
    Order { scheduling: Scheduling::Fifo, max_wait: Time::of_secs(30), fair: false };
pub const AFFINITY: Order = Order { scheduling: Scheduling::Affinity, ..FIFO };

/// Submits the words in turn, and leaves the clock where it is then.
pub fn happen(queue: &mut Queue, words: &str) {
    for word in words.split_whitespace() {
        if let Some(seconds) = word.strip_prefix('+') {
            let later = queue.now_ms + seconds.parse::<u64>().unwrap() * 1000;
            queue.at(later);
            continue;
        }
        let (word, priority) = word.split_once('@').unwrap_or((word, "0"));
        let (client, word) = word.split_once('/').map_or((None, word), |(of, it)| (Some(of), it));
        let (priority, client) = (priority.parse().unwrap(), client.map(str::to_owned));
        let terms = Terms { priority, client, ..Terms::default() };
        let _ = queue.submit(job(word), terms, JobId::new);
    }
}

pub fn queue_with(order: Order, loaded: &str, words: &str) -> Queue {
    let mut queue = queue(64, loaded);
    queue.set_order(order);
    happen(&mut queue, words);
    queue
}

/// Does the next thing as a worker would to which everything succeeds.
pub fn work(queue: &mut Queue) -> Option<Entry> {
    queue.bring_forward(JobId::new);
    let entry = queue.start_next().cloned()?;
    if matches!(entry.job, Job::ModeSwitch { .. }) {
        queue.set_loaded(Target::of(&entry.job));
    }
    queue.finish_running(true);
    Some(entry)
}

#[test]
fn the_line_stands_by_priority_and_its_switches_are_mended() {
    // "a" is loaded; (submitted, line)
    for (submitted, line) in [
        ("b@-1 c d@1", ">d d >c c >b b"),
        ("b@-10 b b@10", ">b b b b"),
        ("b a@5", "a >b b"),
        ("a b@5", ">b b >a a"),
        ("a b@5 a@5", ">b b >a a a"),
        ("b c@5 b@5", ">c c >b b b"),
        ("b b+x b@5", ">b b b >b+x b+x"),
        ("* b@1", ">b b *"),
        ("!b b@5", ">b b !b"),
        ("!b b a@-1 c", "!b b >c c >a a"),
        ("% a@1", "a %"),
    ] {
        let queue = queue_with(FIFO, "a", submitted);
        assert_eq!(words(&queue.waiting), line, "{submitted}");
    }
}

#[test]
fn nobody_gets_between_a_switch_that_has_begun_and_its_generation() {
    let mut queue = queue_with(FIFO, "a", "b");
    queue.start_next();
    happen(&mut queue, "c@5 d@-1 c");
    assert_eq!(words(&queue.waiting), "b >c c c >d d");
    queue.set_loaded(Some(target("b")));
    queue.finish_running(true);
    assert_eq!(words(queue.start_next()), "b");
    // From now on it is only one that runs.
    happen(&mut queue, "d@6");
    assert_eq!(words(&queue.waiting), ">d d >c c c >d d");
}

#[test]
fn a_reload_comes_behind_all_that_waits_whatever_its_priority() {
    let mut queue = queue_with(FIFO, "a", "a a@-5");
    let (old, new) = (super::modes("a"), super::modes("a+x"));
    queue.configure(&old.diff(&new), &new, JobId::new);
    happen(&mut queue, "b@5");
    assert_eq!(words(&queue.waiting), ">b b >a a a ~a+x");
}

#[test]
fn what_a_higher_priority_has_put_in_counts_against_the_limit() {
    let mut queue = queue(3, "a");
    happen(&mut queue, "a a b@5");
    assert_eq!(words(&queue.waiting), "a a");
    // A way back is no job that somebody waits for.
    let _ = queue.start_next();
    happen(&mut queue, "b@5");
    assert_eq!(words(&queue.waiting), ">b b >a a");
}

#[test]
fn affinity_keeps_to_what_is_loaded_until_somebody_has_waited_long_enough() {
    // "a" is loaded, max_wait is 30 s; (what happens, in what order it is done)
    for (submitted, done) in [
        ("b a b a", "a a >b b b"),
        ("b c b a c", "a >b b b >c c c"),
        ("b a+x a", "a >b b >a+x a+x"),
        ("b +29 a", "a >b b"),
        ("b +30 a", ">b b >a a"),
        ("b +20 c a +10 c", ">b b >c c c >a a"),
        // A barrier keeps its place, and is overtaken by nobody.
        ("b !c a", ">b b !c >a a"),
        ("b !a a", ">b b !a a"),
        ("b % a", ">b b % >a a"),
        ("!b b a", "!b b >a a"),
        // A custom job has its turn, and may be overtaken.
        ("* b a", "* a >b b"),
        ("b * a", "a >b b *"),
        // Among equals only.
        ("b@1 a", ">b b >a a"),
        ("b@1 a@1 b a", "a >b b b >a a"),
        ("!b b@1 a@1", "a >b b !b"),
    ] {
        let mut queue = queue_with(AFFINITY, "a", submitted);
        let order: Vec<Entry> = std::iter::from_fn(|| work(&mut queue)).collect();
        assert_eq!(words(&order), done, "{submitted}");
    }
}

#[test]
fn affinity_lets_time_go_by_while_it_works() {
    let mut queue = queue_with(AFFINITY, "a", "b a a a a a");
    let mut order = Vec::new();
    while let Some(entry) = work(&mut queue) {
        if matches!(entry.job, Job::Generation { .. }) {
            happen(&mut queue, "+10");
        }
        order.push(entry);
    }
    assert_eq!(words(&order), "a a a >b b >a a a");
}

#[test]
fn a_reload_changes_the_order_at_once() {
    let mut queue = queue_with(FIFO, "a", "b a");
    let old = super::modes("a");
    let new = Modes { order: AFFINITY, ..super::modes("a") };
    let diff = old.diff(&new);
    assert_eq!(diff.settings, ["scheduling"]);
    queue.configure(&diff, &new, JobId::new);
    let needless = queue.bring_forward(JobId::new).removed;
    assert_eq!((words(&needless), words(&queue.waiting)), (">a".into(), "a >b b".into()));
}

#[test]
fn while_it_is_paused_nothing_begins_and_nothing_changes_places() {
    let mut queue = queue_with(AFFINITY, "a", "b");
    queue.set_paused(true);
    happen(&mut queue, "a");
    let mended = queue.bring_forward(JobId::new);
    assert_eq!((mended, queue.start_next()), (Mended::default(), None));
    assert_eq!(words(&queue.waiting), ">b b >a a");
    queue.set_paused(false);
    assert_eq!(words(&work(&mut queue)), "a");
}

#[derive(Debug, Clone)]
enum Event {
    Submit(&'static str, i8),
    /// So much time goes by.
    Wait(u64),
    /// The next thing is done, a switch or a job.
    Work,
}

/// Among them what is a barrier and is never refused.
const EQUALS: [&str; 6] = ["a", "b", "c", "b+x", "*", "%"];
const JOBS: [&str; 9] = ["a", "b", "c", "b+x", "*", "!a", "!b", "%", "a"];

fn days(
    jobs: &'static [&'static str],
    priorities: std::ops::RangeInclusive<i8>,
) -> impl Strategy<Value = Vec<Event>> {
    let submit = (0..jobs.len(), priorities).prop_map(|(at, p)| Event::Submit(jobs[at], p));
    let wait = (0..40_000_u64).prop_map(Event::Wait);
    prop::collection::vec(prop_oneof![4 => submit, 1 => wait, 3 => Just(Event::Work)], 0..60)
}

/// A queue, and what is known of it without looking at how it decides.
struct Day {
    queue: Queue,
    accepted: BTreeSet<JobId>,
    done: BTreeSet<JobId>,
    /// The generation whose switch was the last thing to be done.
    begun: Option<JobId>,
    switches: usize,
}

impl Day {
    fn new(order: Order) -> Self {
        let mut queue = queue(1000, "a");
        queue.set_order(order);
        let (accepted, done) = (BTreeSet::new(), BTreeSet::new());
        Self { queue, accepted, done, begun: None, switches: 0 }
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Submit(word, priority) => {
                let terms = Terms { priority: *priority, ..Terms::default() };
                if let Ok(submitted) = self.queue.submit(job(word), terms, JobId::new) {
                    assert!(submitted.mended.removed.iter().all(|it| is_for_generations(&it.job)));
                    self.accepted.insert(submitted.job.id);
                }
            }
            Event::Wait(ms) => {
                let now_ms = self.queue.now_ms + ms;
                self.queue.at(now_ms);
            }
            Event::Work => {
                self.works();
            }
        }
    }

    fn works(&mut self) -> bool {
        let Mended { removed, added } = self.queue.bring_forward(JobId::new);
        assert!(added.is_empty(), "who overtakes needs no switch");
        assert!(removed.iter().all(|entry| is_for_generations(&entry.job)));
        let Some(first) = self.first_job() else { return false };
        if self.begun.take().is_none_or(|begun| begun != first.id) {
            self.may_be_next(&first);
        }
        let entry = work(&mut self.queue).unwrap();
        if let Job::Generation { .. } = entry.job {
            assert_eq!(Target::of(&entry.job).as_ref(), self.queue.loaded());
        }
        if is_for_generations(&entry.job) {
            self.switches += 1;
            let next = self.queue.waiting.front();
            let is_its = next.filter(|next| Target::of(&next.job) == Target::of(&entry.job));
            self.begun = is_its.map(|next| next.id);
        } else {
            assert_eq!(entry.id, first.id);
            assert!(self.done.insert(entry.id), "twice: {entry:?}");
        }
        true
    }

    fn first_job(&self) -> Option<Entry> {
        let mut jobs = self.queue.waiting.iter().filter(|entry| !is_for_generations(&entry.job));
        jobs.next().cloned()
    }

    /// What is promised of the order.
    fn may_be_next(&self, next: &Entry) {
        let others = self.queue.waiting.iter().filter(|entry| !is_for_generations(&entry.job));
        let max_wait_ms = self.queue.order.max_wait.duration().as_millis() as u64;
        let is_fixed =
            |entry: &Entry| !matches!(entry.job, Job::Generation { .. } | Job::Custom { .. });
        for other in others.filter(|other| other.id != next.id) {
            let line = words(&self.queue.waiting);
            assert!(other.terms.priority <= next.terms.priority, "{line}: a lower priority");
            if other.terms.priority < next.terms.priority || other.id > next.id {
                continue;
            }
            assert_eq!(self.queue.order.scheduling, Scheduling::Affinity, "{line}: overtaken");
            let waited_ms = self.queue.now_ms - other.arrived_ms;
            assert!(waited_ms < max_wait_ms, "{line}: overtaken after {waited_ms} ms");
            assert!(!is_fixed(other) && !is_fixed(next), "{line}: a barrier was crossed");
        }
    }
}

pub fn check<E: std::fmt::Debug>(strategy: impl Strategy<Value = Vec<E>>, test: impl Fn(&[E])) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
    let mut runner = TestRunner::new(config);
    runner
        .run(&strategy, |events| {
            test(&events);
            Ok(())
        })
        .unwrap();
}

#[test]
fn whatever_happens_the_order_is_as_promised_and_all_is_done_once() {
    check(days(&JOBS, -1..=1), |events| {
        for order in [FIFO, AFFINITY] {
            let mut day = Day::new(order);
            events.iter().for_each(|event| day.happens(event));
            while day.works() {}
            assert_eq!(day.done, day.accepted);
            assert_eq!(day.queue.waiting(), 0, "{}", words(&day.queue.waiting));
        }
    });
}

/// Of one priority: where higher ones come in between, `fifo` may happen to stand at their mode.
#[test]
fn affinity_never_switches_more_often_than_fifo() {
    check(days(&EQUALS, 0..=0), |events| {
        let [fifo, affinity] = [FIFO, AFFINITY].map(|order| {
            let mut day = Day::new(order);
            for event in events {
                day.happens(event);
                // A switch is no step of its own here: both have done equally many jobs.
                while matches!(event, Event::Work) && day.begun.is_some() {
                    day.works();
                }
            }
            while day.works() {}
            day.switches
        });
        assert!(affinity <= fifo, "{affinity} and not {fifo}");
    });
}
