//! How programs in other languages are built, once, under `target`: with the language's own tools, from its own registry,
//! pinned by the files beside the program.

use crate::hosts::{Program, skip};
use crate::programs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs of one sort: `tests/SORT/NAME`, built in `target/SORT/NAME`.
#[derive(Clone, Copy, Debug)]
pub struct Sort(pub &'static str);

impl Sort {
    /// Where a program's source is; where all are, without a name.
    pub fn source(self, name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.0).join(name)
    }

    /// Where a program is built.
    pub fn place(self, name: &str) -> PathBuf {
        let target = programs().extension.parent().and_then(Path::parent).unwrap();
        let place = target.join(self.0).join(name);
        std::fs::create_dir_all(&place).unwrap();
        place
    }

    /// A program in Python, `main.py`, that needs a module.
    pub fn python(self, program: Program, name: &str, module: &str) -> Result<Command, String> {
        step(Command::new(program.path()).args(["-c", &format!("import {module}")]))?;
        let mut command = Command::new(program.path());
        // The steps that all of them share, and what stands beside the program.
        let paths = [self.source(""), self.source(name)].map(|path| path.display().to_string());
        command.arg("-B").arg(self.source(name).join("main.py")).env("PYTHONPATH", paths.join(":"));
        Ok(command)
    }

    /// A program for Node, `main.js`. `build` is called once for the packages of a lock file.
    pub fn node(
        self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Command, String> {
        need("npm", "--version")?;
        let (source, place) = (self.source(name), self.place(name));
        let lock =
            std::fs::read_to_string(source.join("package-lock.json")).map_err(|error| error.to_string())?;
        let built = place.join("built");
        if std::fs::read_to_string(&built).ok().as_ref() != Some(&lock) {
            for file in ["package.json", "package-lock.json"] {
                std::fs::copy(source.join(file), place.join(file)).map_err(|error| error.to_string())?;
            }
            npm(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"], &place)?;
            build(&place)?;
            std::fs::write(&built, lock).map_err(|error| error.to_string())?;
        }
        let mut command = Command::new("node");
        command.arg(source.join("main.js")).env("NODE_PATH", place.join("node_modules"));
        Ok(command)
    }

    /// A program in Go.
    pub fn go(self, name: &str, cgo: bool) -> Result<Command, String> {
        need("go", "version")?;
        let program = self.place(name).join(name);
        let mut build = Command::new("go");
        build.args(["build", "-mod=readonly", "-o"]).arg(&program).arg(".").current_dir(self.source(name));
        step(build.env("CGO_ENABLED", if cgo { "1" } else { "0" }).env("CGO_CFLAGS", "-O0"))?;
        Ok(Command::new(program))
    }

    /// A program in Rust, with a workspace and a lock file of its own.
    pub fn rust(self, name: &str) -> Result<Command, String> {
        let (manifest, place) = (self.source(name).join("Cargo.toml"), self.place(name));
        let mut build = cargo();
        build.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
        step(build.arg("--target-dir").arg(&place))?;
        Ok(Command::new(place.join("debug").join(format!("quire-client-{name}"))))
    }
}

/// Runs a step of a build; the error is all that it said.
pub fn step(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Err(format!("{command:?}: {}\n{}", output.status, said.join("\n")))
}

/// A program that does nothing but say that it is there.
pub fn need(program: &str, argument: &str) -> Result<(), String> {
    step(Command::new(program).arg(argument)).map_err(|why| format!("there is no usable {program}: {why}"))
}

/// Cargo, without what it tells a test of its package: dependencies would be built anew for the difference.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let told = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
    for name in told {
        cargo.env_remove(name);
    }
    cargo
}

/// Runs npm.
pub fn npm(arguments: &[&str], directory: &Path) -> Result<(), String> {
    let mut npm = Command::new("npm");
    npm.args(arguments).current_dir(directory).env("npm_config_jobs", "max");
    // The headers that came with this Node; without them they are downloaded.
    let headers = which("node").and_then(|path| Some(path.parent()?.parent()?.to_owned()));
    if let Some(prefix) = headers.filter(|prefix| prefix.join("include/node/node.h").exists()) {
        npm.env("npm_config_nodedir", prefix);
    }
    step(&mut npm)
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.exists());
    found?.canonicalize().ok()
}

/// Builds programs at the same time, all that this machine has the tools for.
pub fn build_all(
    names: &[&'static str],
    build: fn(&str) -> Result<Command, String>,
) -> Vec<(&'static str, Command)> {
    programs();
    let building: Vec<_> =
        names.iter().map(|&name| (name, std::thread::spawn(move || build(name)))).collect();
    let built = building.into_iter().map(|(name, thread)| (name, thread.join().unwrap()));
    let found = built.filter_map(|(name, built)| match built {
        Ok(command) => Some((name, command)),
        Err(why) => {
            skip(&format!("{name}: {why}"));
            None
        }
    });
    found.collect()
}
