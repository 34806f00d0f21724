//! Clients that take turns: as tables, and over random days. `x/b` is a job of the client x.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    order::{AFFINITY, FIFO, check, happen, queue_with, work},
    *,
};
use crate::modes::Scheduling;

const FAIR: Order = Order { fair: true, ..FIFO };
const FAIR_AFFINITY: Order = Order { fair: true, ..AFFINITY };

/// With the clients.
fn told<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    let of = |entry: &Entry| match (&entry.terms.client, is_for_generations(&entry.job)) {
        (Some(client), false) => format!("{client}/{}", word(&entry.job)),
        (Some(_), true) | (None, _) => word(&entry.job),
    };
    entries.into_iter().map(of).collect::<Vec<_>>().join(" ")
}

fn done(queue: &mut Queue) -> String {
    told(&std::iter::from_fn(|| work(queue)).collect::<Vec<_>>())
}

#[test]
fn clients_take_turns() {
    // "a" is loaded; (submitted, done)
    for (submitted, expected) in [
        ("x/a x/a x/a y/a y/a z/a", "x/a y/a z/a x/a y/a x/a"),
        // Those without a key are one client.
        ("a a x/a", "a x/a a"),
        ("x/a x/* x/a y/a y/*", "x/a y/a x/* y/* x/a"),
        // Within a priority, and not across barriers.
        ("x/a x/a y/a@1 y/a@1 x/a@1", "y/a x/a y/a x/a x/a"),
        ("x/a x/a !b y/b", "x/a x/a !b y/b"),
        ("x/a x/a % y/a x/a y/a", "x/a x/a % y/a x/a y/a"),
        // With the switches that this needs; nobody gets between one and its generation.
        ("x/a x/a y/b", "x/a >b y/b >a x/a"),
        ("x/b x/b y/c y/c", ">b x/b >c y/c >b x/b >c y/c"),
    ] {
        assert_eq!(done(&mut queue_with(FAIR, "a", submitted)), expected, "{submitted}");
    }
}

#[test]
fn who_was_served_is_behind_those_who_were_not_also_later() {
    let mut queue = queue_with(FAIR, "a", "x/a x/a y/a y/a z/a");
    let first: Vec<_> = (0..4).filter_map(|_| work(&mut queue)).collect();
    assert_eq!(told(&first), "x/a y/a z/a x/a");
    // z comes back, and is behind y; somebody new is not.
    happen(&mut queue, "x/a z/a n/a");
    assert_eq!(done(&mut queue), "n/a y/a z/a x/a");
}

#[test]
fn with_affinity_clients_take_turns_as_far_as_that_needs_no_switch() {
    for (submitted, expected) in [
        ("x/a x/a y/b z/a y/b", "x/a z/a x/a >b y/b y/b"),
        ("x/a x/a y/b +30 x/a z/a", "x/a >b y/b >a z/a x/a x/a"),
        // The one whose turn it is: not the one who has waited longest, but has been served.
        ("x/b x/b +30 y/b y/a", ">b x/b y/b x/b >a y/a"),
    ] {
        assert_eq!(done(&mut queue_with(FAIR_AFFINITY, "a", submitted)), expected, "{submitted}");
    }
}

#[test]
fn a_reload_makes_it_fair_at_once() {
    let mut queue = queue_with(FIFO, "a", "x/a x/a y/a");
    assert_eq!(told(work(&mut queue).as_ref()), "x/a");
    let (old, new) = (super::modes("a"), Modes { order: FAIR, ..super::modes("a") });
    let diff = old.diff(&new);
    assert_eq!(diff.settings, ["fair"]);
    queue.configure(&diff, &new, JobId::new);
    assert_eq!(done(&mut queue), "x/a y/a", "what was served before does not count");
}

#[derive(Debug, Clone)]
enum Event {
    Submit { word: &'static str, priority: i8, client: &'static str },
    Wait(u64),
    Work,
}

const JOBS: [&str; 10] = ["a", "a", "b", "b", "c", "b+x", "*", "!a", "!b", "%"];
const CLIENTS: [&str; 4] = ["", "x", "y", "z"];

fn days(clients: usize) -> impl Strategy<Value = Vec<Event>> {
    let submit = (0..JOBS.len(), -1..=1_i8, 0..clients).prop_map(|(job, priority, client)| {
        Event::Submit { word: JOBS[job], priority, client: CLIENTS[client] }
    });
    let wait = (0..40_000_u64).prop_map(Event::Wait);
    prop::collection::vec(prop_oneof![4 => submit, 1 => wait, 3 => Just(Event::Work)], 0..60)
}

/// A queue, and what is known of it without looking at how it decides.
struct Day {
    queue: Queue,
    accepted: BTreeSet<JobId>,
    done: Vec<(JobId, String)>,
    /// When each client was served last, in jobs.
    served: BTreeMap<Option<String>, usize>,
    begun: Option<JobId>,
}

impl Day {
    fn new(order: Order) -> Self {
        Self {
            queue: queue_with(order, "a", ""),
            accepted: BTreeSet::new(),
            done: Vec::new(),
            served: BTreeMap::new(),
            begun: None,
        }
    }

    fn of(order: Order, events: &[Event]) -> Self {
        let mut day = Self::new(order);
        events.iter().for_each(|event| day.happens(event));
        while day.works() {}
        assert_eq!(day.queue.waiting(), 0);
        assert_eq!(day.done.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(), day.accepted);
        assert_eq!(day.done.len(), day.accepted.len(), "twice");
        day
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Submit { word, priority, client } => {
                let client = (!client.is_empty()).then(|| (*client).to_owned());
                let terms = Terms { priority: *priority, client, ..Terms::default() };
                if let Ok(submitted) = self.queue.submit(job(word), terms, JobId::new) {
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
        self.queue.bring_forward(JobId::new);
        let next = self.queue.waiting.iter().find(|entry| !is_for_generations(&entry.job));
        let Some(next) = next.cloned() else { return false };
        if self.begun.take().is_none_or(|begun| begun != next.id) {
            self.may_be_next(&next);
        }
        let entry = work(&mut self.queue).unwrap();
        if is_for_generations(&entry.job) {
            self.begun = Some(next.id);
            return true;
        }
        assert_eq!(entry.id, next.id);
        if let Job::Generation { .. } = entry.job {
            assert_eq!(Target::of(&entry.job).as_ref(), self.queue.loaded());
        }
        self.done.push((entry.id, word(&entry.job)));
        if let Job::Generation { .. } | Job::Custom { .. } = entry.job {
            self.served.insert(entry.terms.client, self.done.len());
        }
        true
    }

    /// What is promised of the order.
    fn may_be_next(&self, next: &Entry) {
        let line = told(&self.queue.waiting);
        let Order { scheduling, max_wait, .. } = self.queue.order;
        let served = |entry: &Entry| self.served.get(&entry.terms.client);
        let is_fixed =
            |entry: &Entry| !matches!(entry.job, Job::Generation { .. } | Job::Custom { .. });
        let jobs = || self.queue.waiting.iter().filter(|entry| !is_for_generations(&entry.job));
        assert!(jobs().all(|job| job.terms.priority <= next.terms.priority), "{line}");
        let equals = || jobs().filter(|job| job.terms.priority == next.terms.priority);
        // What stands before the first barrier, but that the next job was put to the front.
        let barrier = equals().filter(|job| is_fixed(job)).map(|job| job.id).min();
        if barrier.is_some_and(|barrier| next.id >= barrier) {
            let before = equals().filter(|job| job.id < next.id).count();
            assert_eq!(before, 0, "{line}: a barrier was crossed");
            return;
        }
        let in_turn = |of: &dyn Fn(&Entry) -> bool| {
            let jobs = equals().filter(|it| barrier.is_none_or(|barrier| it.id < barrier));
            jobs.filter(|job| of(job)).min_by_key(|job| (served(job), job.id)).cloned()
        };
        let in_turn_of_all = in_turn(&|_| true).unwrap();
        if in_turn_of_all.id == next.id {
            return;
        }
        // Overtaken: by one for what is loaded, since it is not.
        let loaded = self.queue.loaded();
        let waited_ms = u128::from(self.queue.now_ms - in_turn_of_all.arrived_ms);
        assert_eq!(scheduling, Scheduling::Affinity, "{line}: out of turn");
        assert!(waited_ms < max_wait.duration().as_millis(), "{line}: overtaken for too long");
        let target = Target::of(&in_turn_of_all.job);
        assert!(target.is_some() && target.as_ref() != loaded, "{line}: needlessly overtaken");
        let is_for_loaded = |job: &Entry| Target::of(&job.job).as_ref() == loaded;
        assert_eq!(in_turn(&is_for_loaded).unwrap().id, next.id, "{line}: out of turn");
    }
}

#[test]
fn whatever_happens_clients_take_turns_and_all_is_done_once() {
    check(days(CLIENTS.len()), |events| {
        Day::of(FAIR, events);
        Day::of(FAIR_AFFINITY, events);
    });
}

#[test]
fn of_one_client_the_order_is_as_if_it_were_not_fair() {
    check(days(1), |events| {
        for (fair, unfair) in [(FAIR, FIFO), (FAIR_AFFINITY, AFFINITY)] {
            let [fair, unfair] = [fair, unfair].map(|order| {
                let mut queue = queue_with(order, "a", "");
                let mut done = Vec::new();
                for event in events {
                    match event {
                        Event::Submit { word, priority, .. } => {
                            happen(&mut queue, &format!("{word}@{priority}"));
                        }
                        Event::Wait(ms) => {
                            let now_ms = queue.now_ms + ms;
                            queue.at(now_ms);
                        }
                        Event::Work => done.extend(work(&mut queue)),
                    }
                }
                done.extend(std::iter::from_fn(|| work(&mut queue)));
                words(&done)
            });
            assert_eq!(fair, unfair);
        }
    });
}
