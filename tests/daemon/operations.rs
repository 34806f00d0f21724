//! The daemon as a service: what its manager is told, and how long a stop takes.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixDatagram},
};

use serde_json::json;

use crate::support::{DEADLINE, Daemon, MODES, command, folder, read_to_end};

/// What is told next.
fn told(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let length = manager.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    for is_abstract in [false, true] {
        // Nobody else shall read it.
        let modes = format!("watch: off{MODES}");
        let folder = folder(&modes);
        let path = folder.path().join("notify");
        let name = path.to_str().unwrap();
        let (manager, variable) = match is_abstract {
            false => (UnixDatagram::bind(&path).unwrap(), name.to_owned()),
            true => {
                let address = SocketAddr::from_abstract_name(name).unwrap();
                (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
            }
        };
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut program = command(folder.path());
        program.env("NOTIFY_SOCKET", variable);
        let mut daemon = Daemon::spawn(program, folder, &[]);
        assert_eq!(told(&manager), "READY=1");

        let mut before = 0;
        for name in ["third", "fourth"] {
            let modes = format!("{modes}  {name}: {{model: tiny.safetensors}}\n");
            std::fs::write(daemon.config_file(), modes).unwrap();
            daemon.signal("-HUP");
            let reloading = told(&manager);
            let at = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
            let at: u64 = at.parse().unwrap();
            assert!(at > before, "{at} after {before}");
            before = at;
            assert_eq!(told(&manager), "READY=1");
            let modes = daemon.get("/api/modes").json();
            assert!(modes["modes"][name].is_object(), "ready with the new file: {modes}");
        }

        daemon.signal("-TERM");
        assert_eq!(told(&manager), "STOPPING=1");
        assert_eq!(daemon.ended().code(), Some(0));
    }
}

#[test]
fn a_manager_that_is_not_there_is_a_warning() {
    let folder = folder(MODES);
    let mut program = command(folder.path());
    program.env("NOTIFY_SOCKET", folder.path().join("nobody"));
    let daemon = Daemon::spawn(program, folder, &[]);
    assert_eq!(daemon.get("/health").status, 200);
    assert!(daemon.log().contains("the service manager cannot be told"), "{}", daemon.log());
}

#[test]
fn a_job_that_outlasts_the_drain_timeout_is_given_up() {
    let mut daemon = Daemon::start_with(&["--drain-timeout", "0"]);
    daemon.wait_for_status("the default mode", |status| status["current_mode"].is_string());
    let request = json!({"prompt": "x", "num_inference_steps": 999, "size": "512x512"});
    let running = daemon.begin_post("/generate", &request);
    daemon.wait_for_status("the job to run", |status| status["running_job"].is_string());
    daemon.signal("-TERM");
    // Less than the minute that it would have if nobody said anything.
    running.set_read_timeout(Some(DEADLINE / 3)).unwrap();
    let answer = read_to_end(running);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: "), "{answer}");
    assert_eq!(daemon.ended().code(), Some(0));
}
