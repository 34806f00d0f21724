//! A daemon that runs, for the commands that ask it.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

/// Every answer comes at once: the commands ask again where they wait for something.
const LONGEST: Duration = Duration::from_secs(30);

/// Where the daemon is.
#[derive(Debug, Args)]
pub struct Address {
    /// The daemon that is asked [default: http://HOST:PORT, by the variables that `serve` takes]
    #[arg(long, value_name = "URL", env = "DIFFUSED_URL", hide_env_values = true)]
    url: Option<String>,
    #[arg(long, hide = true, default_value = "127.0.0.1", env = "HOST")]
    host: String,
    #[arg(long, hide = true, default_value_t = 4200, env = "PORT")]
    port: u16,
}

impl Address {
    fn url(&self) -> String {
        match &self.url {
            Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
            Some(address) => format!("http://{}", address.trim_end_matches('/')),
            None => {
                // A daemon that listens everywhere is here, too.
                let host = match self.host.as_str() {
                    "0.0.0.0" => "127.0.0.1",
                    "::" => "::1",
                    host => host,
                };
                match host.contains(':') {
                    true => format!("http://[{host}]:{}", self.port),
                    false => format!("http://{host}:{}", self.port),
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon answers at {url} ({reason}); start one with 'diffused serve', or say with --url \
         where it is"
    )]
    NotThere { url: String, reason: String },
    #[error("what answers at {url} is not a diffused daemon")]
    NotADaemon { url: String },
    #[error("{0}")]
    Problem(String),
}

/// What the daemon answered.
pub struct Answer {
    pub body: Value,
    /// The job that it is about.
    pub job: Option<String>,
}

pub struct Client {
    url: String,
    agent: ureq::Agent,
    admin_key: Option<String>,
}

impl Client {
    pub fn new(address: &Address, admin_key: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(LONGEST))
            .proxy(None) // it is near
            .build();
        Self { url: address.url(), agent: config.new_agent(), admin_key }
    }

    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.agent.get(format!("{}{path}", self.url)).call();
        Ok(self.understand(response)?.body)
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, ClientError> {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        if let Some(key) = &self.admin_key {
            request = request.header("x-admin-key", key);
        }
        self.understand(request.send_json(body))
    }

    fn understand(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Answer, ClientError> {
        let url = || self.url.clone();
        let mut response = response
            .map_err(|error| ClientError::NotThere { url: url(), reason: reason(&error) })?;
        let not_a_daemon = |_| ClientError::NotADaemon { url: url() };
        let body: Value = response.body_mut().read_json().map_err(not_a_daemon)?;
        if !response.status().is_success() {
            let is_problem = body["detail"].is_string();
            return Err(match is_problem {
                true => ClientError::Problem(problem(&body)),
                false => ClientError::NotADaemon { url: url() },
            });
        }
        let job = response.headers().get("x-job-id").and_then(|id| id.to_str().ok());
        Ok(Answer { body, job: job.map(str::to_owned) })
    }
}

/// Without what the library says around it.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The detail, and each field that is wrong where the detail does not name it.
fn problem(body: &Value) -> String {
    let mut text = body["detail"].as_str().unwrap_or_default().to_owned();
    let errors = body["errors"].as_array().map_or(&[][..], Vec::as_slice);
    for error in errors.iter().filter(|_| errors.len() > 1) {
        let text_of = |member: &str| error[member].as_str().unwrap_or_default();
        text += &format!("\n  {}: {}", text_of("pointer"), text_of("detail"));
    }
    if body["type"] == "admin-key-needed" {
        text += " (DIFFUSED_ADMIN_KEY or --admin-key-file has it for this command)";
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_the_daemon_is() {
        for (url, host, expected) in [
            (None, "127.0.0.1", "http://127.0.0.1:4200"),
            (None, "0.0.0.0", "http://127.0.0.1:4200"),
            (None, "::", "http://[::1]:4200"),
            (Some("https://x.example/"), "0.0.0.0", "https://x.example"),
            (Some("x.example:80"), "0.0.0.0", "http://x.example:80"),
        ] {
            let address = Address { url: url.map(str::to_owned), host: host.into(), port: 4200 };
            assert_eq!(address.url(), expected);
        }
    }

    #[test]
    fn a_problem_is_told_once() {
        let one = json!({"detail": "/mode: is required", "errors": [
            {"pointer": "/mode", "detail": "is required"},
        ]});
        assert_eq!(problem(&one), "/mode: is required");
        let two = json!({"detail": "2 fields cannot be used; errors lists them", "errors": [
            {"pointer": "/mode", "detail": "is required"},
            {"pointer": "/x", "detail": "unknown field"},
        ]});
        let expected = "2 fields cannot be used; errors lists them\n  /mode: is required\n  \
                        /x: unknown field";
        assert_eq!(problem(&two), expected);
    }
}
