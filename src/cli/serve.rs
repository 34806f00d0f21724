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
    compute::{self, NotThere},
    descriptors,
    key::{KeyError, admin_key},
    lock::{StateDir, StateDirError},
    notify::ServiceManager,
    signals::{self, Event},
    verify::VerifyCheckpoint,
};
use crate::{
    config::{self, ConfigErrors, ModeConfigManager, Origin},
    dispatcher::{self, CustomJobs, DispatcherConfig, DispatcherShutdown},
    engine,
    http::{self, Api, IdempotencyKeys, Inspections},
    journal::JournalError,
    modes::{Authority, Built, HostName, Modes, Switch, UnknownMode},
    webhook::Deliverer,
    worker::{process::this_program, sandbox::Sandbox},
};

/// How long answers may still be on their way once all work is done.
const GOODBYE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
// Another `Arguments` is flattened beside it, and groups are named by their types.
#[group(skip)]
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
    /// Modes that are loaded at the start, in this order, besides the default one and those that
    /// the file says `preload: true` of
    #[arg(long, value_name = "NAMES", env = "PRELOAD", value_delimiter = ',')]
    preload: Vec<String>,
    /// The folder for what outlives the daemon; one daemon at a time
    #[arg(long, value_name = "DIR", default_value = "state")]
    state_dir: PathBuf,
    /// A file with the key that whoever changes modes over the API must send as X-Admin-Key; the
    /// variable DIFFUSED_ADMIN_KEY has the key itself. Without either everybody may
    #[arg(long, value_name = "FILE", env = "DIFFUSED_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// How many jobs may wait; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 1000, env = "QUEUE_MAX",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub queue_max: u32,
    /// How many seconds the running job has to end when the daemon is stopped
    #[arg(long, value_name = "SECS", default_value_t = 60, env = "DRAIN_TIMEOUT",
          value_parser = clap::value_parser!(u64).range(..=86_400))]
    drain_timeout: u64,
    /// How many seconds a POST /generate may wait until it is begun, before it is answered with
    /// 503 [default: as long as that takes]
    #[arg(long, value_name = "SECS", env = "ADMISSION_TIMEOUT",
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    admission_timeout: Option<u32>,
    /// How many seconds the worker may take to stop a job that was cancelled or has run out of
    /// time, before it is killed and another one is started; longer where the job's own steps, or
    /// decoding its image, take longer
    #[arg(long, value_name = "SECS", default_value_t = DispatcherConfig::STOP_GRACE.as_secs(),
          env = "STOP_GRACE", value_parser = clap::value_parser!(u64).range(..=86_400))]
    stop_grace: u64,
    /// How many seconds the worker may be silent (it sends a heartbeat every second, whatever it
    /// does) before it is killed and another one is started; raise it to attach a debugger
    #[arg(long, value_name = "SECS", default_value_t = DispatcherConfig::WORKER_SILENCE.as_secs(),
          env = "DIFFUSED_WORKER_SILENCE", value_parser = clap::value_parser!(u64).range(3..=86_400))]
    worker_silence: u64,
    /// What confines the worker, which reads model files of strangers (Linux): auto, on (on a card,
    /// too) or off
    #[arg(long, value_name = "WHEN", default_value_t = Sandbox::Auto, env = "DIFFUSED_SANDBOX")]
    sandbox: Sandbox,
    #[command(flatten)]
    compute: compute::Arguments,
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
    #[error("{0}")]
    Journal(#[from] JournalError),
    #[error("--preload: {0}")]
    Preload(#[from] UnknownMode),
    #[error("{0}")]
    Compute(#[from] NotThere),
    #[error("{0}")]
    AdminKey(#[from] KeyError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
}

pub fn run(arguments: Arguments, custom: CustomJobs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let served = runtime.map_err(ServeError::from).and_then(|runtime| {
        let served = runtime.block_on(serve(arguments, custom));
        // Threads that block (a slow disk, a webhook's slow receiver) are not waited for longer.
        runtime.shutdown_timeout(Duration::from_secs(1));
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            let is_config = matches!(
                error,
                ServeError::Config(_)
                    | ServeError::Preload(_)
                    | ServeError::Compute(NotThere::Unavailable(_))
            );
            if is_config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

async fn serve(arguments: Arguments, custom: CustomJobs) -> Result<(), ServeError> {
    let events = signals::listen()?;
    let wish = arguments.compute.wish();
    let config = ModeConfigManager::load_or_from_environment(&arguments.config, wish)?;
    let config = Arc::new(config);
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    if !config.has_file() {
        let file = config.path().display();
        tracing::warn!(
            "there is no {file}: MODEL_ROOT and MODEL describe the one mode, 'default'; a file has \
             more, and can be edited while the daemon runs: cp modes.yaml.example {file}"
        );
    }
    let compute = config.current().compute;
    // What it says on the way, the worker says again.
    compute::look(compute)?;
    let preload = preloaded(&config.current(), &arguments.preload)?;
    let admin_key = admin_key(arguments.admin_key_file.as_deref())?;
    let _state = StateDir::acquire(&arguments.state_dir)?;
    let address = arguments.address();
    let descriptors = descriptors::raise_limit();
    let listening = TcpListener::bind(&address).await;
    let failed = |error| ServeError::Listen { address: address.clone(), error };
    let listener = listening.map_err(failed)?;
    if admin_key.is_none() && !listener.local_addr()?.ip().is_loopback() {
        tracing::warn!(
            "listening on {address} without an admin key: everybody who reaches this port may draw, \
             cancel all jobs, change modes and run the commands of custom_jobs; --admin-key-file or \
             DIFFUSED_ADMIN_KEY keeps them from all but drawing and cancelling drawings"
        );
    }

    let modes = config.current();
    let journal = (modes.jobs.journal == Switch::On).then(|| arguments.state_dir.clone());
    if journal.is_none() {
        tracing::warn!("'journal: off': jobs that are not done when this daemon ends are lost");
    }
    let mut worker_arguments = compute::worker_arguments(compute);
    worker_arguments.push(format!("--sandbox={}", arguments.sandbox).into());
    let (told, mut notified) = mpsc::unbounded_channel();
    let deliverer = Deliverer::start(modes.webhooks.clone(), move |job, _| {
        let _ = told.send(job); // when the daemon has ended, the next one tells it again
    });
    let deliverer_too = deliverer.clone();
    let (handle, dispatcher) = dispatcher::start(DispatcherConfig {
        queue_max: arguments.queue_max as usize,
        worker_command: (this_program()?, worker_arguments),
        switch_to_default: is_there(&modes, &modes.default_mode),
        preload,
        modes,
        custom: custom.with(VerifyCheckpoint),
        drain_timeout: Duration::from_secs(arguments.drain_timeout),
        journal,
        stop_grace: Duration::from_secs(arguments.stop_grace),
        worker_silence: Duration::from_secs(arguments.worker_silence),
        confines_files: arguments.sandbox.confines_files(compute.is_candle_on_cpu(Built::IN)),
        cards: Default::default(),
        on_end: Box::new(move |view| {
            if let Some(delivery) = http::delivery(view) {
                deliverer_too.deliver(delivery);
            }
        }),
    })?;
    let dispatcher_too = handle.clone();
    tokio::spawn(async move {
        while let Some(job) = notified.recv().await {
            dispatcher_too.notified(job);
        }
    });
    let dispatcher_too = handle.clone();
    let deliverer_too = deliverer.clone();
    config.on_change(move |diff, modes| {
        dispatcher_too.configure(diff.clone(), modes.clone());
        deliverer_too.configure(modes.webhooks.clone());
    });
    config::watch(config.clone())?;
    announce(&listener)?;
    let manager = ServiceManager::of_environment();
    manager.ready();

    let (stopped, stop) = oneshot::channel();
    let served = Served { config: config.clone(), dispatcher, stopped, manager };
    tokio::spawn(obey(events, served));
    let idempotency = Arc::new(IdempotencyKeys::of_jobs(&handle));
    let api = Api {
        config,
        dispatcher: handle,
        admin_key: admin_key.map(Arc::from),
        listen_name: listen_name(&address),
        inspections: Inspections::new(engine::inspect),
        idempotency,
        admission_secs: arguments.admission_timeout,
    };
    let (all_work_done, goodbye) = oneshot::channel();
    let server = http::serve(listener, api, descriptors, async move {
        let _ = stop.await; // an error is a stop, too
        let _ = all_work_done.send(());
    });
    tokio::select! {
        () = server => {}
        () = async { let _ = goodbye.await; tokio::time::sleep(GOODBYE).await } => {
            tracing::warn!("some clients did not take their answers");
        }
    }
    if tokio::time::timeout(GOODBYE, deliverer.finish()).await.is_err() {
        tracing::warn!("some webhooks were not delivered");
    }
    tracing::info!("ended");
    Ok(())
}

/// The host of `--listen`, if it is a name.
fn listen_name(address: &str) -> Option<Arc<HostName>> {
    let address: Authority = address.parse().ok()?;
    address.name().cloned().map(Arc::new)
}

/// The one line on stdout, for whoever asked for port 0.
fn announce(listener: &TcpListener) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()
}

/// Whether a mode's model is there: one that is not says so when it is used.
fn is_there(modes: &Modes, name: &str) -> bool {
    let model = modes.modes.get(name).map(|mode| &mode.pipeline.checkpoint.path);
    model.is_some_and(|model| model.is_file() || model.is_dir())
}

/// The modes that are loaded at the start, besides the default one: those that are asked for, then
/// those that the file marks. One whose model is not there has its warning already.
fn preloaded(modes: &Modes, asked: &[String]) -> Result<Vec<String>, UnknownMode> {
    let asked = asked.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
    let asked = asked.map(|name| modes.get(name)).collect::<Result<Vec<_>, _>>()?;
    let declared = modes.modes.values().filter(|mode| mode.preload);
    let mut names: Vec<String> = Vec::new();
    for mode in asked.into_iter().chain(declared) {
        let name = &mode.name;
        if *name != modes.default_mode && !names.contains(name) && is_there(modes, name) {
            names.push(name.clone());
        }
    }
    Ok(names)
}

/// What signals change.
struct Served {
    config: Arc<ModeConfigManager>,
    dispatcher: DispatcherShutdown,
    /// Lets the server go.
    stopped: oneshot::Sender<()>,
    manager: ServiceManager,
}

/// Does what signals say. The first stop finishes the running job, while new ones are still
/// answered (with 503), and then lets the server go; the second ends the process.
async fn obey(mut events: mpsc::UnboundedReceiver<Event>, served: Served) {
    let Served { config, dispatcher, stopped, manager } = served;
    while let Some(event) = events.recv().await {
        match event {
            Event::Reload => {
                manager.reloading();
                let config = config.clone();
                // What comes of it, the manager says.
                let reload = tokio::task::spawn_blocking(move || config.reload(Origin::Signal));
                if let Err(panicked) = reload.await {
                    tracing::error!("{panicked}");
                }
                manager.ready();
            }
            Event::Stop => break,
        }
    }
    manager.stopping();
    tracing::info!("finishing the running job; a second signal ends at once");
    tokio::spawn(async move {
        dispatcher.drain().await;
        let _ = stopped.send(()); // the server may have ended by itself
    });
    while let Some(event) = events.recv().await {
        if event == Event::Stop {
            tracing::warn!("ending at once");
            // What is closed by that ends the worker and the commands.
            std::process::exit(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_to_listen_on_is_known_and_an_address_is_no_name() {
        for (address, expected) in [
            ("box.lan:4200", Some("box.lan")),
            ("127.0.0.1:4200", None),
            ("[::1]:0", None),
            ("0.0.0.0:0", None),
        ] {
            let expected = expected.map(|name| Arc::new(name.parse::<HostName>().unwrap()));
            assert_eq!(listen_name(address), expected, "{address}");
        }
    }
}
