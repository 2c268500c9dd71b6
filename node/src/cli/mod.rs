//! The command line.

pub mod app;
pub mod backup;
pub mod bench;
pub mod bench_http;
mod bench_stream;
pub mod bench_writers;
pub mod client;
pub mod db;
pub mod demo;
pub mod host;
pub mod inspect;
pub mod leader;
pub mod local;
pub mod passwd;
pub mod recover;
pub mod remove;
pub mod restore;
pub mod run;
pub mod shell;
pub mod status;
pub mod tx;
pub mod verify;

use crate::args::{self, Cli, Command};
use std::process::ExitCode;

/// A command whose output is cut off, as by `head`, ends there like any other program.
fn end_on_broken_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of this program, and no thread relies on another one yet.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Runs a command.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let logging = || {
        let filter = tracing_subscriber::EnvFilter::try_new(&cli.log)
            .map_err(|error| anyhow::anyhow!("--log {:?}: {error}", cli.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if cli.log_json {
            builder.json().init()
        } else {
            builder.init()
        }
        anyhow::Ok(())
    };
    if matches!(cli.command, Command::Status(_) | Command::Verify(_) | Command::Inspect(_)) {
        end_on_broken_pipe();
    }
    match cli.command {
        Command::Node(args) => {
            logging()?;
            run::node(*args)
        }
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Db(args) => db::run(&args.what),
        Command::Shell(args) => shell::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Inspect(args) => inspect::run(&args.what),
        Command::Bench(args) => match &args.what {
            None => bench::run(&args),
            Some(args::BenchWhat::Http(http)) => bench_http::run(http),
            Some(args::BenchWhat::Writers(writers)) => bench_writers::run(writers),
        },
        Command::Remove(args) => remove::run(&args),
        Command::Leader(args) => leader::run(&args),
        Command::Tx(args) => tx::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Passwd => passwd::run(),
        Command::Host(args) => host::run(&args),
    }
}
