//! Lines at a terminal, with history and completion. rustyline: small, MIT, used and kept up for many years; of its
//! features only the history file.

use super::Shell;
use super::complete::{Names, Offer, offer};
use anyhow::Context as _;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Helper};
use std::cell::RefCell;
use std::fs::{DirBuilder, File};
use std::io::{IsTerminal, stdout};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Entries that are kept.
const HISTORY: usize = 5000;

/// What was typed.
#[derive(Debug)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

/// A line editor.
pub(super) struct Editor {
    editor: rustyline::Editor<Help, FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    pub(super) fn new(shell: &Rc<RefCell<Shell>>) -> anyhow::Result<Editor> {
        let config = Config::builder()
            .completion_type(CompletionType::List)
            .history_ignore_space(true)
            .max_history_size(HISTORY)
            .context("the history can't be kept")?
            // Where results go elsewhere, the prompt must not.
            .behavior(if stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm })
            .build();
        let mut editor = rustyline::Editor::with_config(config)?;
        let help = Help { shell: shell.clone(), before: String::new(), files: FilenameCompleter::new() };
        editor.set_helper(Some(help));
        let mut history = history_file();
        if let Some(path) = &history
            && let Err(why) = prepare(path).and_then(|()| Ok(editor.load_history(path)?))
        {
            eprintln!("quire: {}: {why:#}; nothing is remembered", path.display());
            history = None;
        }
        Ok(Editor { editor, history })
    }

    /// The next line, which goes on with the statement so far.
    pub(super) fn line(&mut self, prompt: &str, before: &str) -> anyhow::Result<Line> {
        if let Some(help) = self.editor.helper_mut() {
            before.clone_into(&mut help.before);
        }
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error).context("reading from the terminal"),
        }
    }

    /// Puts an entry into the history, and into its file, so that shells at the same time lose nothing.
    pub(super) fn remember(&mut self, entry: &str) {
        let added = self.editor.add_history_entry(entry.trim_end());
        if let (Ok(true), Some(path)) = (added, &self.history)
            && let Err(why) = self.editor.append_history(path)
        {
            eprintln!("quire: {}: {why}; nothing more is remembered", path.display());
            self.history = None;
        }
    }
}

/// Where the history is: QUIRE_HISTORY, which may be empty for none, or the user's directory for such things.
fn history_file() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QUIRE_HISTORY") {
        return Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    Some(state.or_else(home)?.join("quire/history"))
}

/// Makes sure that the file is there, and the user's alone.
fn prepare(path: &Path) -> anyhow::Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let file = File::options().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// What the editor asks while a line is typed.
struct Help {
    shell: Rc<RefCell<Shell>>,
    /// The statement so far.
    before: String,
    files: FilenameCompleter,
}

impl Completer for Help {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        match offer(&self.before, &line[..pos], || self.names()) {
            Offer::Files => self.files.complete_path(line, pos),
            Offer::Words(start, words) => {
                let pair = |word: String| Pair { display: word.clone(), replacement: word };
                Ok((start, words.into_iter().map(pair).collect()))
            }
        }
    }
}

impl Help {
    fn names(&self) -> Names {
        // The shell waits for the line meanwhile.
        self.shell.try_borrow_mut().map(|mut shell| shell.names()).unwrap_or_default()
    }
}

impl Hinter for Help {
    type Hint = String;
}

impl Highlighter for Help {}

impl Validator for Help {}

impl Helper for Help {}
