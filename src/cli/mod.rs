//! Arguments in, exit code out: one file a subcommand. Uses every other room; nothing uses it.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::dispatcher::{CustomJobs, SUPERVISE};

mod check;
mod client;
mod compute;
mod descriptors;
mod key;
mod lock;
mod log;
mod models;
mod notify;
mod recover;
mod serve;
mod signals;
mod status;
mod supervise;
mod switch;
mod table;
mod verify;
mod worker;

/// The configuration is at fault (`EX_CONFIG` of sysexits.h): trying again will not help.
const EXIT_CONFIG: u8 = 78;

/// Draws images: named modes from one YAML file, a queue, one accelerator.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Arguments,
}

const EXAMPLES: &str = "\
Examples:
  diffused                                serve modes.yaml on 127.0.0.1:4200
  diffused check                          say what is wrong with modes.yaml, line by line
  diffused serve --preload sd15,ink       load these at the start, too
  diffused serve --listen 0.0.0.0:8080    serve to the whole network (there is no password!)
  MODEL_ROOT=models MODEL=x.safetensors diffused
                                          serve one model without a modes.yaml

  diffused status                         what a daemon that runs is doing, and its memory
  diffused models                         its modes, and which of them are loaded
  diffused switch ink                     draw with that mode where a request names none
  diffused recover                        serve images again that a damaged journal has lost

  curl -o fox.png -H 'content-type: application/json' \\
       -d '{\"prompt\": \"a red fox in the snow\"}' http://127.0.0.1:4200/generate

Signals:
  SIGHUP           read the configuration file again (it is read by itself when it is saved)
  SIGTERM, SIGINT  finish the running job and end; a second one ends at once

Exit codes:
  0 success, 1 failure, 2 wrong arguments, 78 wrong configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (what happens without a subcommand, too)
    Serve(serve::Arguments),
    /// Say what is wrong with a configuration file; exit code 0 if nothing is, 78 otherwise
    Check(check::Arguments),
    /// Make a mode of the daemon that runs the current one, and wait until it is
    Switch(switch::Arguments),
    /// Say what the daemon that runs is doing: memory, loaded models, queue
    Status(status::Arguments),
    /// List the modes of the daemon that runs: which are loaded, and what they take
    Models(models::Arguments),
    /// Make jobs of images that the journal has lost, while no daemon runs
    Recover(recover::Arguments),
    /// Print the JSON Schema of modes.yaml, for editors
    Schema,
    /// The process that owns the accelerator; `serve` starts it
    #[command(hide = true)]
    Worker(worker::Arguments),
    /// The process that ends a custom job's command with all that it has started; `serve` starts it
    #[command(name = SUPERVISE, hide = true)]
    Supervise(supervise::Arguments),
}

/// The whole program. A binary of your own calls it with the handlers that its custom jobs need;
/// the one that comes with this crate has none.
pub fn main(custom: CustomJobs) -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command.unwrap_or(Command::Serve(arguments.serve)) {
        Command::Serve(arguments) => {
            log::to_stderr();
            serve::run(arguments, custom)
        }
        Command::Check(arguments) => check::run(arguments),
        Command::Switch(arguments) => switch::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Models(arguments) => models::run(&arguments),
        Command::Recover(arguments) => {
            log::to_stderr();
            recover::run(&arguments)
        }
        Command::Schema => {
            println!("{}", crate::config::schema());
            ExitCode::SUCCESS
        }
        Command::Worker(arguments) => {
            log::to_stderr();
            worker::run(&arguments)
        }
        Command::Supervise(arguments) => supervise::run(&arguments),
    }
}

/// What a command found out, on stdout; or, on stderr, why it did not.
fn print(result: Result<String, impl Display>) -> ExitCode {
    match result {
        // Who reads may have seen enough.
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            Ok(()) | Err(_) => ExitCode::SUCCESS,
        },
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_subcommand() {
        for arguments in [
            &["diffused", "--listen", "[::1]:0", "--queue-max", "3"][..],
            &["diffused", "serve", "--listen", "[::1]:0", "--queue-max", "3"],
        ] {
            let parsed = Arguments::try_parse_from(arguments).unwrap();
            let Command::Serve(serve) = parsed.command.unwrap_or(Command::Serve(parsed.serve))
            else {
                panic!("{arguments:?}")
            };
            assert_eq!((serve.address(), serve.queue_max), ("[::1]:0".into(), 3));
        }
        assert!(Arguments::try_parse_from(["diffused", "--queue-max", "0"]).is_err());
    }
}
