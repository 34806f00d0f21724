//! A daemon on a free port, in a folder of its own, that ends with its test.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Worker;

pub const DEADLINE: Duration = Duration::from_secs(60);

/// Two modes with a checkpoint of their own each, and one that names LoRAs.
pub const MODES: &str = r#"
model_root: models
default_mode: tiny
modes:
  tiny: {model: tiny.safetensors, default_size: 64x64, metadata: {description: small}}
  other: {model: other.safetensors, default_size: 72x64, default_steps: 2}
  styled: {model: tiny.safetensors, loras: [a.safetensors, {path: b.safetensors, strength: 0.5}]}
"#;

pub struct Daemon {
    child: Child,
    pub url: String,
    folder: TempDir,
}

pub struct Answer {
    pub status: u16,
    headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

/// The small checkpoint that comes with the source.
pub fn shipped_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden/tiny-sd15.safetensors")
}

/// A folder with `modes.yaml` and the models that [`MODES`] names.
pub fn folder(modes: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    fs::create_dir(&models).unwrap();
    for name in ["tiny.safetensors", "other.safetensors"] {
        symlink(shipped_checkpoint(), models.join(name)).unwrap();
    }
    fs::write(folder.path().join("modes.yaml"), modes).unwrap();
    folder
}

/// The binary in that folder, without the variables that it listens to.
pub fn command(folder: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_diffused")), folder)
}

/// The same with another binary.
pub fn command_of(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    let variables = [
        "MODES_CONFIG",
        "HOST",
        "PORT",
        "QUEUE_MAX",
        "PRELOAD",
        "DRAIN_TIMEOUT",
        "ADMISSION_TIMEOUT",
        "STOP_GRACE",
        "DIFFUSED_WORKER_SILENCE",
        "DIFFUSED_SANDBOX",
        "ENGINE",
        "DEVICE",
        "PRECISION",
        "NOTIFY_SOCKET",
        "DIFFUSED_URL",
        "COLUMNS",
        "RUST_LOG",
        "MODEL",
        "MODEL_ROOT",
        "LORA_ROOT",
        "DEFAULT_SIZE",
        "DEFAULT_STEPS",
        "DEFAULT_GUIDANCE",
        "DIFFUSED_ADMIN_KEY",
        "DIFFUSED_ADMIN_KEY_FILE",
    ];
    for name in variables {
        command.env_remove(name);
    }
    command
}

impl Daemon {
    /// Has a mode's pipelines unloaded, so that they are read anew.
    pub fn unload(&self, mode: &str) {
        let body = serde_json::json!({"mode": mode, "wait": true});
        let answer = self.post("/api/models/unload", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The model that the current mode draws with, of `GET /api/vram`.
    pub fn active_model(&self) -> Value {
        let vram = self.get("/api/vram").json();
        let models = vram["models"].as_array().unwrap();
        let active = models.iter().find(|model| model["active"] == true);
        active.unwrap_or_else(|| panic!("nothing is active: {vram}")).clone()
    }

    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(folder(MODES), arguments)
    }

    pub fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        Self::spawn(command(folder.path()), folder, arguments)
    }

    /// `program` is what [`command`] or [`command_of`] made for that folder.
    pub fn spawn(program: Command, folder: TempDir, arguments: &[&str]) -> Self {
        let (child, url) = serve(program, folder.path(), arguments);
        Self { child, url, folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.path().join("modes.yaml")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.send("POST", path, &[("content-type", "application/json")], body.as_bytes())
    }

    /// Posts a form; a part with a file's name is a file.
    pub fn post_form(&self, path: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Answer {
        let mut body = Vec::new();
        for (name, file, bytes) in parts {
            let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
            let disposition = format!("form-data; name=\"{name}\"{file}");
            body.extend(format!("--x-x\r\ncontent-disposition: {disposition}\r\n\r\n").bytes());
            body.extend(*bytes);
            body.extend(b"\r\n");
        }
        body.extend(b"--x-x--\r\n");
        let content_type = ("content-type", "multipart/form-data; boundary=x-x");
        self.send("POST", path, &[content_type], &body)
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .build();
        let mut request = ureq::http::Request::builder().method(method);
        request = request.uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = config.new_agent();
        let response = if method == "GET" {
            agent.run(request.body(()).unwrap())
        } else {
            agent.run(request.body(body.to_vec()).unwrap())
        };
        let mut response = response.unwrap();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().read_to_vec().unwrap(),
        }
    }

    /// Begins a request on a connection of its own, and leaves the answer on the wire. Dropping
    /// the connection is hanging up.
    pub fn begin_post(&self, path: &str, body: &Value) -> TcpStream {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The daemon's worker, once there is one.
    pub fn worker(&self) -> Worker {
        wait_for("a worker process", || Worker::of(self.child.id()))
    }

    /// Ends the daemon as the kernel does when memory runs out.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again in its folder, after it has ended.
    pub fn start_again(&mut self, arguments: &[&str]) {
        let program = command(self.path());
        (self.child, self.url) = serve(program, self.folder.path(), arguments);
    }

    /// Waits for the daemon to end.
    pub fn ended(&mut self) -> ExitStatus {
        wait_for("the daemon to end", || self.child.try_wait().unwrap())
    }

    pub fn wait_for_status(&self, what: &str, is: impl Fn(&Value) -> bool) {
        wait_for(what, || is(&self.get("/api/models/status").json()).then_some(()));
    }

    /// Waits for a job's end and returns its view.
    pub fn finished_job(&self, id: &str) -> Value {
        wait_for("the job to end", || {
            let job = self.get(&format!("/api/jobs/{id}")).json();
            let state = job["state"].as_str().unwrap();
            ["done", "failed", "cancelled"].contains(&state).then_some(job)
        })
    }
}

/// Draws an image as a job that is kept, and waits for it.
pub fn draw(daemon: &Daemon, seed: u64) -> String {
    let body = json!({"prompt": "a fox", "seed": seed, "num_inference_steps": 1, "mode": "tiny"});
    let answer = daemon.post("/api/jobs", &body);
    assert_eq!(answer.status, 202, "{}", answer.text());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(daemon.finished_job(&id)["state"], "done");
    id
}

/// Ends the daemon as a service manager does.
pub fn stop(daemon: &mut Daemon) {
    daemon.signal("-TERM");
    assert!(daemon.ended().success());
}

/// Starts a daemon; its log goes to the end of the folder's.
fn serve(mut program: Command, folder: &Path, arguments: &[&str]) -> (Child, String) {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    let mut child = program
        .arg("serve")
        .args(if arguments.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] })
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let Some(url) = line.trim().strip_prefix("listening on ") else {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        panic!("the daemon does not listen: {line}{log}");
    };
    (child, url.to_owned())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Checks that this is a problem, whole and true, and returns it.
    #[track_caller]
    pub fn problem(&self, status: u16, kind: &str, instance: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], kind, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert_eq!(problem["instance"], instance, "{problem}");
        for member in ["title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
        }
        problem
    }
}

/// Reads what is left of an answer that was begun with [`Daemon::begin_post`].
pub fn read_to_end(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // a reset is an end, too
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether an answer has begun to arrive.
pub fn has_answer(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let arrived = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).unwrap();
    arrived
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
