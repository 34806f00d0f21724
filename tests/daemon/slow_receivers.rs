//! Webhooks whose receivers take connections and say nothing.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::mpsc,
    thread,
};

use serde_json::json;

use crate::support::{DEADLINE, Daemon, MODES, folder};

/// With two attempts each, more than may be under way at once.
const TARPITS: usize = 66;

/// An attempt may take ten minutes, which no test waits for. The share of the address leaves places;
/// the other shares have tests in `webhook::agenda`.
#[test]
fn many_slow_receivers_delay_no_honest_one() {
    let tarpits: Vec<_> = (0..TARPITS).map(|_| TcpListener::bind("0.0.0.0:0").unwrap()).collect();
    let honest = TcpListener::bind("127.0.0.1:0").unwrap();
    let honest_url = format!("http://{}/", honest.local_addr().unwrap());
    let (told, arrived) = mpsc::channel();
    thread::spawn(move || {
        for stream in honest.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            if told.send(()).is_err() {
                return;
            }
        }
    });
    let modes = format!("{MODES}webhooks: {{allow_private: true, timeout: 10m}}\n");
    let daemon = Daemon::start_in(folder(&modes), &[]);
    let submit = |url: &str| {
        let job = json!({"prompt": "x", "num_inference_steps": 1, "size": "64x64", "webhook": url});
        let answer = daemon.post("/api/jobs", &job);
        assert_eq!(answer.status, 202, "{}", answer.text());
    };
    for (at, tarpit) in tarpits.iter().enumerate() {
        // One address has several names; the honest receiver has another address.
        let host = ["127.0.0.2", "127.2", "0x7f000002"][at % 3];
        let port = tarpit.local_addr().unwrap().port();
        (0..2).for_each(|_| submit(&format!("http://{host}:{port}/")));
    }
    submit(&honest_url);
    arrived.recv_timeout(DEADLINE).expect("a webhook behind the slow ones");
}
