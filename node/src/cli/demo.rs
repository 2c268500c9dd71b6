//! demo placeholder
use crate::args::DemoArgs;
use std::process::ExitCode;
/// x
pub fn run(_args: &DemoArgs) -> anyhow::Result<ExitCode> { anyhow::bail!("not yet") }
