//! `quire passwd`: a hash of a password for the file of `--auth`.

use crate::api::auth;
use anyhow::{Context as _, bail};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::io::{BufRead, IsTerminal, stdin};
use std::process::ExitCode;

/// Reads a line, unseen if it is typed, and prints its hash.
pub fn run() -> anyhow::Result<ExitCode> {
    let password = ask("Password: ")?;
    println!("{}", auth::hash(&password).map_err(anyhow::Error::msg)?);
    Ok(ExitCode::SUCCESS)
}

/// A password from standard input, unseen if it is typed.
pub(super) fn ask(prompt: &str) -> anyhow::Result<String> {
    let input = stdin();
    let mut line = String::new();
    if input.is_terminal() {
        eprint!("{prompt}");
        let seen = tcgetattr(&input)?;
        let mut unseen = seen.clone();
        unseen.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&input, SetArg::TCSAFLUSH, &unseen)?;
        let read = input.lock().read_line(&mut line);
        tcsetattr(&input, SetArg::TCSANOW, &seen)?;
        eprintln!();
        read?;
    } else {
        input.lock().read_line(&mut line).context("can't read a password from standard input")?;
    }
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        bail!("an empty password is none");
    }
    Ok(password.to_owned())
}
