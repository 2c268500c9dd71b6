use super::*;
use crate::cli::shell::reply;
use std::fs;

/// What is printed of an answer.
fn printed(look: &Look, answer: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut output = Output::file(file.path()).unwrap();
    let mut printer = Printer::new(look, &mut output);
    let read = reply::read(answer.as_bytes(), &mut printer);
    printer.end(read.is_ok()).unwrap();
    output.flush().unwrap();
    fs::read_to_string(file.path()).unwrap()
}

fn look(mode: Mode) -> Look {
    Look { mode, headers: None, null: String::new(), separator: "|".into(), table: "tab".into() }
}

const ANSWER: &str = r#"{"results":[{"columns":["id","na\"me","data"],"types":["integer","text","blob"],"values":[
    [1,"it's, \"é\"\u001b[2J",[0,255]],[-2.5,null,null],[3,"two\nlines",[]],[true,"","a|b"]]}]}"#;

fn golden(mode: Mode, expected: &str) {
    let mut look = look(mode);
    look.null = "NIL".into();
    assert_eq!(printed(&look, ANSWER), expected.trim_start_matches('\n'), "{}", mode.name());
}

#[test]
fn each_mode() {
    golden(
        Mode::List,
        "
1|it's, \"é\"\u{1b}[2J|x'00ff'\n-2.5|NIL|NIL\n3|two\nlines|x''\n1||a|b\n",
    );
    golden(
        Mode::Tabs,
        "
1\tit's, \"é\"\u{1b}[2J\tx'00ff'\n-2.5\tNIL\tNIL\n3\ttwo\nlines\tx''\n1\t\ta|b\n",
    );
    golden(
        Mode::Csv,
        "
1,\"it's, \"\"é\"\"\u{1b}[2J\",x'00ff'\n-2.5,NIL,NIL\n3,\"two\nlines\",x''\n1,\"\",a|b\n",
    );
    golden(
        Mode::Quote,
        "
1,'it''s, \"é\"\u{1b}[2J',x'00ff'\n-2.5,NULL,NULL\n3,'two\nlines',x''\n1,'','a|b'\n",
    );
    golden(
        Mode::Insert,
        "
INSERT INTO tab VALUES(1,'it''s, \"é\"\u{1b}[2J',x'00ff');
INSERT INTO tab VALUES(-2.5,NULL,NULL);
INSERT INTO tab VALUES(3,'two\nlines',x'');
INSERT INTO tab VALUES(1,'','a|b');\n",
    );
    golden(
        Mode::Json,
        r#"
[{"id":1,"na\"me":"it's, \"é\"\u001b[2J","data":"AP8="},
{"id":-2.5,"na\"me":null,"data":null},
{"id":3,"na\"me":"two\nlines","data":""},
{"id":true,"na\"me":"","data":"a|b"}]
"#,
    );
    golden(
        Mode::Line,
        "
   id = 1\nna\"me = it's, \"é\"\u{1b}[2J\n data = x'00ff'\n
   id = -2.5\nna\"me = NIL\n data = NIL\n
   id = 3\nna\"me = two\nlines\n data = x''\n
   id = 1\nna\"me = \n data = a|b\n",
    );
    golden(
        Mode::Column,
        r#"
id    na"me           data
----  --------------  -------
   1  it's, "é"^[[2J  x'00ff'
-2.5  NIL             NIL
   3  two             x''
      lines
   1                  a|b
"#,
    );
    golden(
        Mode::Table,
        r#"
+------+----------------+---------+
| id   | na"me          | data    |
+------+----------------+---------+
|    1 | it's, "é"^[[2J | x'00ff' |
| -2.5 | NIL            | NIL     |
|    3 | two            | x''     |
|      | lines          |         |
|    1 |                | a|b     |
+------+----------------+---------+
"#,
    );
    golden(
        Mode::Box,
        r#"
┌──────┬────────────────┬─────────┐
│ id   │ na"me          │ data    │
├──────┼────────────────┼─────────┤
│    1 │ it's, "é"^[[2J │ x'00ff' │
│ -2.5 │ NIL            │ NIL     │
│    3 │ two            │ x''     │
│      │ lines          │         │
│    1 │                │ a|b     │
└──────┴────────────────┴─────────┘
"#,
    );
    golden(
        Mode::Markdown,
        r#"
| id   | na"me          | data    |
|------|----------------|---------|
|    1 | it's, "é"^[[2J | x'00ff' |
| -2.5 | NIL            | NIL     |
|    3 | two<br>lines   | x''     |
|    1 |                | a\|b    |
"#,
    );
}

#[test]
fn headers_nothing_and_nothing_to_show() {
    let with = |mode, headers| Look { headers, ..look(mode) };
    let one = r#"{"results":[{"columns":["a","b c"],"types":["",""],"values":[[1,2]]}]}"#;
    assert_eq!(printed(&with(Mode::List, Some(true)), one), "a|b c\n1|2\n");
    assert_eq!(printed(&with(Mode::Csv, Some(true)), one), "a,b c\n1,2\n");
    assert_eq!(printed(&with(Mode::Tabs, Some(true)), one), "a\tb c\n1\t2\n");
    assert_eq!(printed(&with(Mode::Quote, Some(true)), one), "'a','b c'\n1,2\n");
    assert_eq!(printed(&with(Mode::Insert, Some(true)), one), "INSERT INTO tab(a,\"b c\") VALUES(1,2);\n");
    assert_eq!(printed(&with(Mode::Column, Some(false)), one), "1  2\n");
    let none = r#"{"results":[{"columns":["a"],"types":[""]}]}"#;
    assert_eq!(printed(&look(Mode::Json), none), "[]\n");
    assert_eq!(printed(&look(Mode::Table), none), "");
    assert_eq!(printed(&look(Mode::Json), r#"{"results":[{"rows_affected":1}]}"#), "");
    let cut = r#"{"results":[{"columns":["a"],"types":[""],"values":[[1],"#;
    assert_eq!(printed(&look(Mode::Json), cut), "[{\"a\":1}\n", "it must not look complete");
}

#[test]
fn tables_of_wide_characters_long_blobs_and_many_rows() {
    let blob = vec!["7"; 40].join(",");
    let answer =
        format!(r#"{{"results":[{{"columns":["a","b"],"types":["",""],"values":[["日本\tx",[{blob}]]]}}]}}"#);
    let shown = format!("x'{}…' (40 bytes)", "07".repeat(16));
    let expected = format!("a          b\n---------  {}\n日本    x  {shown}\n", "-".repeat(47));
    assert_eq!(printed(&look(Mode::Column), &answer), expected);
    let rows = (0..5000).map(|n| format!("[{n}]")).collect::<Vec<_>>().join(",");
    let answer = format!(r#"{{"results":[{{"columns":["a"],"types":[""],"values":[{rows},[1234567]]}}]}}"#);
    let lines = printed(&look(Mode::Table), &answer);
    assert_eq!(lines.lines().count(), 5001 + 4);
    assert!(lines.contains("| 4999 |\n| 1234567 |\n+------+\n"), "a wider row widens its line");
}

#[test]
fn modes_by_name() {
    assert!(MODES.iter().all(|(name, mode)| Mode::named(name) == Some(*mode) && mode.name() == *name));
    assert_eq!(Mode::named("COL"), Some(Mode::Column));
    assert_eq!((Mode::named("l"), Mode::named(""), Mode::named("none")), (None, None, None));
}
