//! How long it takes to understand a configuration of 1,000 modes, and until an edit is in force.
//!
//! ```text
//! cargo bench --bench config
//! ```

use std::{
    fmt::Write,
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Parser;
use diffused::config::{self, ModeConfigManager, Origin};

#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 1_000)]
    modes: u32,
    /// How often each is measured.
    #[arg(long, default_value_t = 21)]
    turns: u32,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long an edit may take at the very most.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("modes.yaml");
    write(&file, &options, 1, "off")?;
    let manager = Arc::new(ModeConfigManager::load(&file)?);

    let mut reloads = Vec::new();
    for turn in 0..options.turns {
        write(&file, &options, 1 + turn, "off")?;
        let began = Instant::now();
        manager.reload(Origin::Api)?;
        reloads.push(began.elapsed());
    }
    println!("{} modes, {} KiB; milliseconds", options.modes, fs::metadata(&file)?.len() >> 10);
    println!("{:<44} {:>8} {:>8}", "", "median", "max");
    show("read and checked", reloads);

    for watch in ["auto", "native", "poll"] {
        write(&file, &options, 500, watch)?;
        let manager = Arc::new(ModeConfigManager::load(&file)?);
        config::watch(manager.clone())?;
        let mut edits = Vec::new();
        for turn in 0..options.turns {
            // At any time between two looks.
            thread::sleep(Duration::from_millis(37 * u64::from(turn % 13)));
            let began = Instant::now();
            write(&file, &options, 600 + turn, watch)?;
            while manager.current().modes["mode0"].defaults.steps != 600 + turn {
                ensure!(began.elapsed() < DEADLINE, "the edit was not noticed");
                thread::sleep(Duration::from_millis(1));
            }
            edits.push(began.elapsed());
        }
        show(&format!("from the edit until it is in force, {watch}"), edits);
    }
    Ok(())
}

fn write(file: &Path, options: &Options, steps: u32, watch: &str) -> anyhow::Result<()> {
    let mut text = format!("model_root: .\nwatch: {watch}\ndefault_mode: mode0\nmodes:\n");
    for mode in 0..options.modes {
        write!(
            text,
            "  mode{mode}:\n    model: sd15/model{mode}.safetensors\n    loras: \
             [detail.safetensors, {{path: style{mode}.safetensors, strength: 0.8}}]\n    \
             default_size: 512x768\n    default_steps: {steps}\n    default_scheduler: dpmpp_2m_karras\n"
        )?;
    }
    Ok(fs::write(file, text)?)
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let [median, max] = [times[times.len() / 2], times[times.len() - 1]].map(ms);
    println!("{what:<44} {median:>8.1} {max:>8.1}");
}
