//! Who gets a place in the daemon's memory where there is no room for all.

use serde_json::json;

use crate::{
    memory_bounds::{begin, file, forget_peak, noise, peak, status_of},
    support::{Daemon, MODES, folder, has_answer, wait_for},
};

const MIB: usize = 1 << 20;

/// How many places of that part were ever given out.
pub fn given_out(daemon: &Daemon, part: &str) -> u64 {
    metric(daemon, "diffused_budget_places_total", part)
}

fn metric(daemon: &Daemon, name: &str, part: &str) -> u64 {
    let text = daemon.get("/metrics").text();
    let series = format!("{name}{{part=\"{part}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
}

#[test]
fn lists_that_nobody_reads_take_a_bounded_amount_of_memory() {
    let command = json!(["/bin/sh", "-c", "head -c 900000 /dev/zero | tr '\\0' x"]);
    let modes = format!("{MODES}custom_jobs: {{job: {{command: {command}}}}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    for _ in 0..5 {
        let job = daemon.post("/api/jobs/custom", &json!({"name": "job"})).json();
        assert_eq!(daemon.finished_job(job["id"].as_str().unwrap())["state"], "done");
    }
    forget_peak(&daemon);
    // Each page is 4 MiB.
    let idle: Vec<_> =
        (0..100).map(|_| begin(&daemon, "GET /api/jobs?limit=200 HTTP/1.1", b"")).collect();
    idle.iter().for_each(|it| wait_for("an answer", || has_answer(it).then_some(())));
    assert!(given_out(&daemon, "texts") > 0);
    let peak = peak(&daemon);
    assert!(peak < 300, "{peak} MiB");
    // What is short needs no place.
    assert_eq!(daemon.get("/api/jobs?limit=1&state=queued").status, 200);
    drop(idle);
    wait_for("a place for a page that is read", || {
        (daemon.get("/api/jobs?limit=200").status == 200).then_some(())
    });
}

#[test]
fn a_slow_body_leaves_the_reserve_to_a_quick_one() {
    let daemon = Daemon::start();
    let head =
        "POST /generate HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 60000000";
    // What they take is 2 * 5.4 MiB, and 96 MiB are open to all.
    let slow: Vec<_> = (0..8).map(|_| begin(&daemon, head, &vec![b' '; 11 * MIB / 2])).collect();
    let in_use = || metric(&daemon, "diffused_budget_bytes", "bodies");
    wait_for("eight bodies", || (in_use() > 86 * MIB as u64).then_some(()));
    let ninth = begin(&daemon, head, &vec![b' '; 6 * MIB]);
    wait_for("a ninth one", || (in_use() > 96 * MIB as u64).then_some(()));
    let mut image = file(&noise(64), image::ImageFormat::Jpeg);
    image.extend(vec![0; 4 * MIB]); // trailing bytes are ignored
    let answer = daemon.post_form("/superres", &[("image", Some("x"), &image[..])]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // It is not its fault alone, so it may come again: no 408.
    assert_eq!(status_of(ninth), 503);
    drop(slow);
}
