//! SQL scripts, cut into statements. Where the splitter says that a statement ends, `sqlite3_complete` of the machine's
//! SQLite says so of the statement, and of none of its beginnings that end in a semicolon outside; nothing of the script is lost, and
//! where the script is cut into pieces makes no difference. Not compared: text with a NUL, which `sqlite3_complete` takes for the
//! end and a script may not have.

use crate::script_splitter::Splitter;
use std::ffi::CString;

/// The offsets after which statements end.
fn ends(script: &[u8]) -> Vec<usize> {
    let mut splitter = Splitter::default();
    (1..=script.len()).filter(|end| splitter.take(script[end - 1])).collect()
}

fn is_complete(text: &[u8]) -> bool {
    let text = CString::new(text).expect("there is no NUL");
    // SAFETY: the function reads a C string.
    unsafe { rusqlite::ffi::sqlite3_complete(text.as_ptr()) != 0 }
}

/// One run.
pub fn run(data: &[u8]) {
    let script = &data[..data.len().min(4096)];
    let ends = ends(script);
    assert!(ends.is_sorted_by(|a, b| a < b) && ends.iter().all(|end| script[end - 1] == b';'));
    if script.contains(&0) {
        return;
    }
    let mut from = 0;
    for &end in &ends {
        let statement = &script[from..end];
        assert!(is_complete(statement), "{:?}", String::from_utf8_lossy(statement));
        for (at, _) in statement[..statement.len() - 1].iter().enumerate().filter(|(_, byte)| **byte == b';')
        {
            assert!(!is_complete(&statement[..=at]), "{:?}", String::from_utf8_lossy(&statement[..=at]));
        }
        from = end;
    }
    for (at, _) in script[from..].iter().enumerate().filter(|(_, byte)| **byte == b';') {
        let rest = &script[from..=from + at];
        assert!(!is_complete(rest), "{:?}", String::from_utf8_lossy(rest));
    }
}
