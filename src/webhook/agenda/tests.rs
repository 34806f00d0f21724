use super::{Attempted::*, Outcome::*, *};

fn begun(agenda: &mut Agenda<u32>, now_ms: u64) -> Vec<u32> {
    let addresses = Addresses::default();
    std::iter::from_fn(|| agenda.begin(now_ms, &addresses).map(|(_, delivery)| delivery)).collect()
}

fn next_ms(agenda: &Agenda<u32>, now_ms: u64) -> Option<u64> {
    agenda.next_ms(now_ms, &Addresses::default())
}

#[test]
fn one_receiver_does_not_hold_up_another() {
    let mut agenda = Agenda::default();
    for (receiver, delivery) in [("slow", 1), ("slow", 2), ("slow", 3), ("quick", 4)] {
        agenda.add(receiver, delivery, 0, Never);
    }
    assert_eq!(begun(&mut agenda, 0), [1, 2, 4]);
    assert_eq!(next_ms(&agenda, 0), None, "it waits for one that ends");
    agenda.end("quick", Delivered, 0);
    assert_eq!(begun(&mut agenda, 0), [0; 0]);
    agenda.end("slow", Delivered, 0);
    assert_eq!(begun(&mut agenda, 0), [3]);
}

#[test]
fn a_bounded_number_is_under_way() {
    let mut agenda = Agenda::default();
    let all = MAX_AT_ONCE as u32 + 10;
    (0..all).for_each(|delivery| agenda.end(&delivery.to_string(), Delivered, 0));
    (0..all).for_each(|delivery| agenda.add(&delivery.to_string(), delivery, 0, Never));
    assert_eq!(begun(&mut agenda, 0).len(), MAX_AT_ONCE);
    agenda.end("3", Delivered, 0);
    assert_eq!(begun(&mut agenda, 0), [MAX_AT_ONCE as u32]);
}

#[test]
fn each_has_its_time_and_first_attempts_come_before_others() {
    let mut agenda = Agenda::default();
    for (delivery, due_ms) in [(1, 30), (2, 10), (3, 10), (4, 20)] {
        agenda.add(&delivery.to_string(), delivery, due_ms, Before);
    }
    assert_eq!(begun(&mut agenda, 9), [0; 0]);
    assert_eq!(next_ms(&agenda, 9), Some(10));
    agenda.add("new", 5, 20, Never);
    assert_eq!(begun(&mut agenda, 20), [5, 2, 3, 4]);
    assert_eq!(next_ms(&agenda, 20), Some(30));
}

#[test]
fn a_receiver_that_timed_out_has_one_place_until_it_answers() {
    let mut agenda = Agenda::default();
    (0..6).for_each(|delivery| agenda.add("a", delivery, 0, Never));
    assert_eq!(begun(&mut agenda, 0), [0, 1]);
    agenda.end("a", TimedOut, 10);
    assert_eq!(begun(&mut agenda, 10), [0; 0], "one is under way");
    agenda.end("a", TimedOut, 10);
    assert_eq!(begun(&mut agenda, 10), [2]);
    agenda.end("a", Delivered, 20);
    assert_eq!(begun(&mut agenda, 20), [3, 4], "it has answered");
    agenda.end("a", TimedOut, 30);
    agenda.end("a", TimedOut, 30);
    assert_eq!(begun(&mut agenda, 30 + SLOW_FOR_MS), [5], "it was long ago");
}

#[test]
fn slow_receivers_leave_places_to_others() {
    let mut agenda = Agenda::default();
    let names: Vec<String> = (0..2 * MAX_AT_ONCE).map(|at| format!("slow {at}")).collect();
    for name in &names {
        agenda.end(name, TimedOut, 0);
        agenda.add(name, 0, 1, Before);
    }
    assert_eq!(begun(&mut agenda, 1).len(), MAX_SLOW_AT_ONCE);
    agenda.add("quick", 7, 1, Never);
    assert_eq!(begun(&mut agenda, 1), [7]);
}

/// A name server that says nothing: each name below it is new, and none has an address yet.
#[test]
fn the_names_of_one_domain_share_its_places() {
    let mut agenda = Agenda::default();
    for at in 0..2 * MAX_AT_ONCE as u32 {
        agenda.add(&format!("a{at}.evil.example:443"), at, 0, Never);
    }
    assert_eq!(begun(&mut agenda, 0).len(), MAX_PER_DOMAIN);
    for (receiver, delivery) in [("evil.example:80", 1000), ("honest.example:443", 1001)] {
        agenda.add(receiver, delivery, 0, Never);
    }
    assert_eq!(begun(&mut agenda, 0), [1001]);
    agenda.end("a3.evil.example:443", Failed, 0);
    assert_eq!(begun(&mut agenda, 0), [MAX_PER_DOMAIN as u32]);
}

#[test]
fn receivers_that_never_took_a_delivery_leave_places_to_others() {
    for (outcome, has_place) in
        [(Delivered, true), (Failed, false), (TimedOut, false), (NotAsked, false)]
    {
        let mut agenda = Agenda::default();
        agenda.end("honest", outcome, 0);
        (0..MAX_AT_ONCE as u32).for_each(|at| agenda.add(&format!("new {at}"), at, 0, Never));
        assert_eq!(begun(&mut agenda, 0).len(), MAX_NEW_AT_ONCE);
        agenda.add("honest", 1000, 0, Never);
        let expected: &[u32] = if has_place { &[1000] } else { &[] };
        assert_eq!(begun(&mut agenda, 0), expected, "{outcome:?}");
    }
}

#[test]
fn a_slow_receiver_that_was_not_asked_stays_slow() {
    let mut agenda = Agenda::default();
    agenda.end("a", TimedOut, 0);
    agenda.end("a", NotAsked, 0);
    (0..2).for_each(|delivery| agenda.add("a", delivery, 0, Before));
    assert_eq!(begun(&mut agenda, 0), [0]);
}

#[test]
fn a_bounded_number_of_receivers_is_remembered() {
    let mut agenda = Agenda::<u32>::default();
    let names: Vec<String> = (0..=MAX_PROVEN).map(|at| at.to_string()).collect();
    for (at_ms, name) in names.iter().enumerate() {
        agenda.end(name, Delivered, at_ms as u64);
    }
    assert_eq!(agenda.proven.len(), MAX_PROVEN);
    assert!(!agenda.proven.contains_key("0"), "it was the longest ago");
}

#[test]
fn the_names_of_one_address_share_its_places() {
    let mut addresses = Addresses::default();
    let [one, mapped, other] =
        ["1.1.1.1", "::ffff:1.1.1.1", "2.2.2.2"].map(|it| it.parse::<IpAddr>().unwrap());
    assert!((0..MAX_PER_ADDRESS).all(|_| addresses.take(one)));
    assert!(!addresses.take(mapped));
    assert!(addresses.take(other));
    let [v6, beside] = ["2606:4700::1", "2606:4700::2:3"].map(|it| it.parse::<IpAddr>().unwrap());
    assert!((0..MAX_PER_ADDRESS).all(|_| addresses.take(v6)));
    assert!(!addresses.take(beside), "whoever has one address of a /64 has all");

    let mut agenda = Agenda::default();
    agenda.put_back("name", 1, 0, Never, one);
    agenda.add("other", 2, 0, Never);
    let begin = |agenda: &mut Agenda<u32>, addresses: &Addresses| {
        std::iter::from_fn(|| agenda.begin(0, addresses).map(|it| it.1)).collect::<Vec<_>>()
    };
    assert_eq!(begin(&mut agenda, &addresses), [2]);
    assert_eq!(agenda.next_ms(0, &addresses), None);
    addresses.release(one);
    assert_eq!(begin(&mut agenda, &addresses), [1]);
}

/// Random days: however many receivers are slow, one that answers at once never waits as long as
/// there are fewer slow ones than places.
#[test]
fn a_quick_receiver_never_waits_for_slow_ones() {
    let mut random = 1_u64;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    for _ in 0..200 {
        let mut agenda = Agenda::default();
        let tarpits = below((MAX_AT_ONCE / MAX_PER_RECEIVER) as u64);
        let mut under_way: Vec<String> = Vec::new();
        for now_ms in 0..100 {
            for _ in 0..below(20) {
                let receiver = format!("tarpit {}", below(tarpits.max(1)));
                let attempted = if below(2) == 0 { Never } else { Before };
                agenda.add(&receiver, 0, now_ms, attempted);
            }
            let addresses = Addresses::default();
            under_way.extend(
                std::iter::from_fn(|| agenda.begin(now_ms, &addresses)).map(|(name, _)| name),
            );
            for name in &under_way {
                let of_name = under_way.iter().filter(|it| *it == name).count();
                assert!(of_name <= MAX_PER_RECEIVER, "{of_name} with {name}");
            }
            assert!(under_way.len() <= MAX_AT_ONCE);
            agenda.add("quick", 1, now_ms, Never);
            let begun = agenda.begin(now_ms, &addresses);
            assert_eq!(begun, Some(("quick".to_owned(), 1)), "behind {} others", under_way.len());
            agenda.end("quick", Delivered, now_ms);
            for _ in 0..below(3) {
                if !under_way.is_empty() {
                    let at = below(under_way.len() as u64) as usize;
                    agenda.end(&under_way.swap_remove(at), TimedOut, now_ms);
                }
            }
        }
    }
}
