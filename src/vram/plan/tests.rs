//! Who leaves, as tables. A pipeline is a digit; what holds bytes is written with its users, as
//! `12:5` (pipelines 1 and 2 share 5 bytes).

use super::*;

fn id(digit: char) -> PipelineId {
    PipelineId(digit.to_digit(10).unwrap().into())
}

fn ids(digits: &str) -> Vec<PipelineId> {
    digits.chars().map(id).collect()
}

fn segments(words: &str) -> Vec<Segment> {
    let segment = |word: &str| {
        let (users, bytes) = word.split_once(':').unwrap();
        Segment { component: "unet".into(), users: ids(users), bytes: bytes.parse().unwrap() }
    };
    words.split_whitespace().map(segment).collect()
}

/// `1@30/5` was last used at 30 ms and took 5 ms to load; behind it `!` says active, `^` pinned,
/// `-` unwanted and `~` of a request alone.
fn residents(words: &str) -> Vec<Resident> {
    let resident = |word: &str| {
        let standing = match word.chars().last() {
            Some('!') => Standing::Active,
            Some('^') => Standing::Pinned,
            Some('-') => Standing::Unwanted,
            Some('~') => Standing::OneOff,
            // "~!" is active and of a request.
            _ => Standing::Free,
        };
        let (id, times) = word.trim_end_matches(['!', '^', '-', '~']).split_once('@').unwrap();
        let (last_used, load) = times.split_once('/').unwrap();
        let (last_used_ms, load_ms) = (last_used.parse().unwrap(), load.parse().unwrap());
        let id = PipelineId(id.parse().unwrap());
        let of_request = word.contains('~');
        Resident { id, standing, of_request, last_used_ms, load_ms }
    };
    words.split_whitespace().map(resident).collect()
}

struct Case {
    residents: &'static str,
    segments: &'static str,
    limit: u64,
    max_models: Option<u32>,
    takes_over: bool,
    drawing: u64,
}

/// Pipeline 9 is to be loaded.
fn planned(case: &Case, eviction: Eviction) -> Result<Plan, NoRoom> {
    let wish = Wish {
        residents: &residents(case.residents),
        new: PipelineId(9),
        of_request: false,
        segments: &segments(case.segments),
        working_bytes: 1,
        drawing_bytes: case.drawing,
        takes_over: case.takes_over,
        now_ms: 100,
    };
    let Case { max_models, limit: weights_bytes, .. } = *case;
    let max_request_pipelines = 4;
    plan(&wish, &Limits { eviction, max_models, max_request_pipelines, weights_bytes })
}

#[test]
fn room_is_made_for_what_is_to_be_loaded() {
    let (too_large, beside, too_many) = (
        |needed_bytes, available_bytes| Err(NoRoom::TooLarge { needed_bytes, available_bytes }),
        |needed_bytes, available_bytes| Err(NoRoom::BesideOthers { needed_bytes, available_bytes }),
        |max_models| Err(NoRoom::TooMany { max_models }),
    );
    let leave = |before, after| Ok(Plan { before: ids(before), after: ids(after) });
    let all = u64::MAX;
    type Row =
        (&'static str, &'static str, &'static str, u64, Option<u32>, bool, Result<Plan, NoRoom>);
    let rows: Vec<Row> = vec![
        ("nothing is loaded", "", "9:10", 11, None, true, leave("", "")),
        ("a byte is lacking", "", "9:10", 10, None, true, too_large(11, 10)),
        ("there is room for both", "1@5/1!", "1:10 9:10", 21, None, true, leave("", "")),
        ("the active one gives way", "1@5/1!", "1:10 9:10", 20, None, true, leave("1", "")),
        ("not for a mere load", "1@5/1!", "1:10 9:10", 20, None, false, beside(21, 20)),
        ("a pinned one stays", "1@5/1^", "1:10 9:10", 20, None, true, beside(21, 20)),
        (
            "the active one is the last to go",
            "1@5/1! 2@90/1",
            "1:10 2:10 9:10",
            21,
            None,
            true,
            leave("2", ""),
        ),
        (
            "what was used last stays",
            "1@50/1 2@40/1 3@60/1!",
            "1:10 2:10 3:10 9:10",
            31,
            None,
            true,
            leave("2", ""),
        ),
        (
            "who is not needed is spared",
            "1@10/1 2@40/1 3@60/1!",
            "1:3 2:10 3:10 9:10",
            31 - 5,
            None,
            true,
            leave("2", ""),
        ),
        (
            "what is shared is counted once",
            "1@5/1!",
            "19:20 1:1 9:1",
            23,
            None,
            true,
            leave("", ""),
        ),
        (
            "what the new one shares stays when the other goes",
            "1@5/1! 2@1/1",
            "19:20 1:1 2:5 9:1",
            22,
            None,
            true,
            leave("21", ""),
        ),
        (
            "two who share must both go to give it back",
            "1@5/1 2@6/1 3@7/1!",
            "12:20 3:1 9:15",
            17,
            None,
            true,
            leave("12", ""),
        ),
        (
            "an unwanted one first",
            "1@1/1 2@90/1- 3@50/1!",
            "1:5 2:5 3:5 9:5",
            16,
            None,
            true,
            leave("2", ""),
        ),
        ("one too many", "1@5/1!", "1:10 9:10", all, Some(1), true, leave("", "1")),
        (
            "of three two",
            "1@5/1 2@3/1 3@9/1!",
            "1:1 2:1 3:1 9:1",
            all,
            Some(2),
            true,
            leave("", "21"),
        ),
        (
            "who went for memory counts",
            "1@5/1 2@3/1 3@9/1!",
            "1:5 2:5 3:5 9:5",
            16,
            Some(3),
            true,
            leave("2", ""),
        ),
        ("a load beside the active one", "1@5/1!", "1:1 9:1", all, Some(1), false, too_many(1)),
        (
            "pinned ones fill all places",
            "1@5/1^ 2@5/1^",
            "1:1 2:1 9:1",
            all,
            Some(2),
            true,
            too_many(2),
        ),
        ("too large even alone", "1@5/1^ 2@5/1", "1:5 2:5 9:30", 30, None, true, too_large(31, 30)),
    ];
    for (what, residents, segments, limit, max_models, takes_over, expected) in rows {
        let case = Case { residents, segments, limit, max_models, takes_over, drawing: 0 };
        assert_eq!(planned(&case, Eviction::Lru), expected, "{what}");
    }
}

#[test]
fn policies_differ_in_who_goes_first() {
    // 1 is the oldest, 2 was idle for longest, 3 is cheap to have back, 4 is large.
    let (residents, segments) =
        (residents("1@90/100 2@10/100 3@50/5 4@60/100"), segments("1:10 2:10 3:10 4:100 1234:50"));
    for (eviction, order) in [
        (Eviction::Fifo, "1234"),
        (Eviction::Lru, "2341"),
        // 10·90/100 = 9, 10·50/5 = 100, 100·40/100 = 40, 10·10/100 = 1
        (Eviction::MemoryPressure, "3421"),
    ] {
        assert_eq!(in_order(&residents, &segments, eviction, 100), ids(order), "{eviction}");
    }
}

#[test]
fn of_requests_pipelines_the_least_recently_used_leave_beyond_a_bound() {
    for (what, words, of_request, max, max_models, takes_over, after) in [
        ("as many as may be", "1@1/1~ 2@2/1~!", true, 3, None, true, ""),
        ("one more", "1@1/1~ 2@2/1~!", true, 2, None, true, "1"),
        ("the active one loses its place", "1@9/1~ 2@2/1~!", true, 2, None, true, "2"),
        ("but for a mere load", "1@9/1~ 2@2/1~!", true, 2, None, false, "1"),
        ("a declared one", "1@1/1~ 2@2/1~ 3@3/1", false, 1, None, true, "1"),
        ("declared ones do not count", "1@1/1 2@2/1 3@3/1! 4@4/1^", true, 1, None, true, ""),
        ("a pinned one stays", "1@1/1~^ 2@2/1~", true, 1, None, true, "2"),
        ("they count for max_models", "1@1/1 2@2/1~ 3@3/1~!", true, 2, Some(3), true, "2"),
        ("others leave for max_models", "1@1/1 2@2/1~ 3@3/1!", true, 1, Some(2), true, "21"),
    ] {
        let residents = residents(words);
        let wish = Wish {
            residents: &residents,
            new: PipelineId(9),
            of_request,
            segments: &[],
            working_bytes: 0,
            drawing_bytes: 0,
            takes_over,
            now_ms: 100,
        };
        let limits = Limits {
            eviction: Eviction::Fifo,
            max_models,
            max_request_pipelines: max,
            weights_bytes: 0,
        };
        let expected = Plan { before: vec![], after: ids(after) };
        assert_eq!(plan(&wish, &limits), Ok(expected), "{what}");
    }
}

#[test]
fn nobody_leaves_who_must_stay() {
    let residents = residents("1@1/1! 2@2/1^ 3@3/1 4@4/1~ 5@5/1-");
    assert_eq!(in_order(&residents, &[], Eviction::Fifo, 100), ids("543"));
}

#[test]
fn there_is_room_to_draw_where_there_can_be() {
    let case = |limit, drawing| {
        let (residents, segments) = ("1@1/1 2@2/1 3@3/1!", "1:10 2:10 3:10 9:10");
        Case { residents, segments, limit, max_models: None, takes_over: true, drawing }
    };
    for (limit, drawing, before) in [
        (45, 4, ""),
        (45, 6, "1"),
        (45, 16, "12"),
        // Even the active one goes for that,
        (45, 26, "123"),
        // and where it cannot be had at all nobody goes for it.
        (45, 36, ""),
        (31, 36, "1"),
    ] {
        let plan = planned(&case(limit, drawing), Eviction::Lru);
        assert_eq!(plan.map(|plan| plan.before), Ok(ids(before)), "{limit} {drawing}");
    }
}

#[test]
fn idle_ones_leave_even_the_active_one_and_never_the_pinned() {
    let residents = residents("1@1/1! 2@2/1^ 3@95/1- 4@60/1 5@50/1");
    for (idle_ms, leaving) in
        [(None, "3"), (Some(50), "135"), (Some(40), "1345"), (Some(0), "1345")]
    {
        assert_eq!(idle(&residents, idle_ms, 100), ids(leaving), "{idle_ms:?}");
    }
}
