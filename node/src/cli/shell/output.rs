//! Where results go: standard output or a file. Nothing that a value holds can command a terminal: there, control
//! characters are shown, not sent.

use anyhow::Context as _;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write, stdout};
use std::path::Path;

/// Where results go.
#[derive(Debug)]
pub(super) struct Output {
    to: BufWriter<Target>,
    is_terminal: bool,
}

#[derive(Debug)]
enum Target {
    Stdout(io::Stdout),
    File(File),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Stdout(to) => to.write(bytes),
            Target::File(to) => to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Stdout(to) => to.flush(),
            Target::File(to) => to.flush(),
        }
    }
}

impl Output {
    pub(super) fn stdout() -> Output {
        let to = stdout();
        Output { is_terminal: to.is_terminal(), to: BufWriter::new(Target::Stdout(to)) }
    }

    /// A file, new or emptied.
    pub(super) fn file(path: &Path) -> anyhow::Result<Output> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Output { is_terminal: file.is_terminal(), to: BufWriter::new(Target::File(file)) })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        let text = if self.is_terminal { visible(text) } else { Cow::Borrowed(text) };
        self.to.write_all(text.as_bytes())
    }

    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.write(text)?;
        self.write("\n")
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Characters that would make a terminal do something, or show text in another order than it has; not tab and newline.
fn is_command(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with such characters as `^[`, `^?` or `\u{9b}`.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            _ if !is_command(c) => out.push(c),
            '\0'..='\x1f' => out.extend(['^', char::from(c as u8 + b'@')]),
            '\x7f' => out.push_str("^?"),
            _ => out.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_commands_a_terminal() {
        assert_eq!(visible("a\tb\n\u{e9} \u{1f600}"), "a\tb\n\u{e9} \u{1f600}");
        let bad = "\x1b[2J\0\r\x7f\u{9b}31m\u{202e}";
        assert_eq!(visible(bad), "^[[2J^@^M^?\\u{9b}31m\\u{202e}");
        assert!(!visible(bad).contains(is_command));
    }
}
