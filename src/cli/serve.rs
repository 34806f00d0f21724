//! `diffused serve`: puts the rooms together, and takes them apart again.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{net::TcpListener, sync::mpsc, sync::oneshot};

use super::{
    EXIT_CONFIG,
    lock::{StateDir, StateDirError},
    signals::{self, Event},
};
use crate::{
    config::{ConfigErrors, ModeConfigManager},
    dispatcher::{self, CustomJobs, DispatcherConfig, DispatcherShutdown},
    http::{self, Api},
    modes::{Modes, PipelineSpec},
};

/// How long answers may still be on their way once all work is done.
const GOODBYE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Arguments {
    /// The file that declares the modes
    #[arg(long, value_name = "FILE", default_value = "modes.yaml", env = "MODES_CONFIG")]
    config: PathBuf,
    /// Where to listen, as HOST:PORT; port 0 takes any free one [default: 127.0.0.1:4200]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The host to listen on, where --listen does not say it
    #[arg(long, default_value = "127.0.0.1", env = "HOST")]
    host: String,
    /// The port to listen on, where --listen does not say it
    #[arg(long, default_value_t = 4200, env = "PORT")]
    port: u16,
    /// The folder for what outlives the daemon; one daemon at a time
    #[arg(long, value_name = "DIR", default_value = "state")]
    state_dir: PathBuf,
    /// How many jobs may wait; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 64, env = "QUEUE_MAX",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub queue_max: u32,
}

impl Arguments {
    pub fn address(&self) -> String {
        self.listen.clone().unwrap_or_else(|| match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    StateDir(#[from] StateDirError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub fn run(arguments: Arguments, custom: CustomJobs) -> ExitCode {
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::from)
        .and_then(|runtime| runtime.block_on(serve(arguments, custom)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let is_config = matches!(error, ServeError::Config(_));
            if is_config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

async fn serve(arguments: Arguments, custom: CustomJobs) -> Result<(), ServeError> {
    let events = signals::listen()?;
    let config = Arc::new(ModeConfigManager::load(&arguments.config)?);
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let _state = StateDir::acquire(&arguments.state_dir)?;
    let address = arguments.address();
    let listening = TcpListener::bind(&address).await;
    let listener = listening.map_err(|error| ServeError::Listen { address, error })?;

    let modes = config.current();
    let (handle, dispatcher) = dispatcher::start(DispatcherConfig {
        queue_max: arguments.queue_max as usize,
        worker_command: (std::env::current_exe()?, vec!["worker".into()]),
        selected_mode: modes.default_mode.clone(),
        preload: preload(&modes),
        custom,
    });
    announce(&listener)?;

    let (stopped, stop) = oneshot::channel();
    tokio::spawn(obey(events, config.clone(), dispatcher, stopped));
    let router = http::router(Api { config, dispatcher: handle });
    let (all_work_done, goodbye) = oneshot::channel();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stop.await; // an error is a stop, too
        let _ = all_work_done.send(());
    });
    tokio::select! {
        ended = server => ended?,
        () = async { let _ = goodbye.await; tokio::time::sleep(GOODBYE).await } => {
            tracing::warn!("some clients did not take their answers");
        }
    }
    tracing::info!("ended");
    Ok(())
}

/// The one line on stdout, for whoever asked for port 0.
fn announce(listener: &TcpListener) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()
}

/// The default mode, if its model is there: one that is not says so when it is used.
fn preload(modes: &Modes) -> Option<(String, PipelineSpec)> {
    let mode = modes.get(&modes.default_mode).ok()?;
    let model = &mode.pipeline.checkpoint.path;
    (model.is_file() || model.is_dir()).then(|| (mode.name.clone(), mode.pipeline.clone()))
}

/// Does what signals say. The first stop finishes the running job, while new ones are still
/// answered (with 503), and then lets the server go; the second ends the process.
async fn obey(
    mut events: mpsc::UnboundedReceiver<Event>,
    config: Arc<ModeConfigManager>,
    dispatcher: DispatcherShutdown,
    stopped: oneshot::Sender<()>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Reload => reload(config.clone()).await,
            Event::Stop => break,
        }
    }
    tracing::info!("finishing the running job; a second signal ends at once");
    tokio::spawn(async move {
        dispatcher.drain().await;
        let _ = stopped.send(()); // the server may have ended by itself
    });
    while let Some(event) = events.recv().await {
        if event == Event::Stop {
            tracing::warn!("ending at once");
            std::process::exit(1);
        }
    }
}

async fn reload(config: Arc<ModeConfigManager>) {
    match tokio::task::spawn_blocking(move || config.reload()).await {
        Ok(Ok(report)) => {
            report.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            tracing::info!(diff = ?report.diff, "configuration reloaded");
        }
        Ok(Err(errors)) => {
            errors.diagnostics.iter().for_each(|error| tracing::error!("{error}"));
            tracing::error!("configuration not reloaded; the modes are what they were before");
        }
        Err(panicked) => tracing::error!("{panicked}"),
    }
}
