//! `.import`: text files become rows, all or none.

use super::{prints, shell};
use std::path::Path;

pub(super) fn imports(address: &str, dir: &Path) {
    let path = dir.join("rows.csv").to_str().unwrap().to_owned();
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let fails = |input: &str, why: &str| {
        let ran = shell(address, &[], input);
        assert!(ran.status == 1 && ran.out.is_empty() && ran.error.contains(why), "{input}: {ran:?}");
    };

    // A new table, whose columns the first row names.
    write("\u{feff}id,full name,note\r\n007,\"Ada, \"\"Countess\"\"\",\r\n8,\"two\nlines\",\"\"\r\n");
    let import = format!(".import --csv {path} people\n");
    let query = "SELECT id, \"full name\", note IS NULL, note, typeof(id) FROM people;\n";
    let rows = "007|Ada, \"Countess\"|1||text\n8|two\nlines|0||text\n";
    assert_eq!(prints(address, &[], &format!("{import}{query}")), rows);
    assert_eq!(
        prints(address, &[".schema people"], ""),
        "CREATE TABLE people(id TEXT, \"full name\" TEXT, note TEXT);\n"
    );
    // There it is now, and the first row is one.
    let input = format!(
        ".changes on\n.import --csv --skip 1 {path} people\n.changes off\nSELECT count(*) FROM people;\n"
    );
    assert_eq!(prints(address, &[], &input), "changes: 2\n4\n");

    // What is printed as CSV is read back as it was; in list and tabs, too.
    let table = "CREATE TABLE kinds(i INTEGER PRIMARY KEY, r REAL, t TEXT);\n\
        INSERT INTO kinds VALUES(1, 1.5, ''), (2, NULL, NULL), (-3, 1e300, ' \"é\",| x'), (4, 0, 'NULL');\n\
        CREATE TABLE again AS SELECT * FROM kinds WHERE 0; CREATE TABLE tabs AS SELECT * FROM kinds WHERE 0;";
    prints(address, &[], table);
    let input = format!(".mode csv\n.output {path}\nSELECT * FROM kinds;\n.output\n.import {path} again\n");
    prints(address, &[], &input);
    let differs =
        "SELECT count(*) FROM (SELECT * FROM kinds EXCEPT SELECT * FROM again); SELECT count(*) FROM again;";
    assert_eq!(prints(address, &[], differs), "0\n4\n");
    write("5|0.5|a b\n\n6|-|-\n");
    let input =
        format!(".nullvalue -\n.import {path} again\n.nullvalue \"\"\nSELECT * FROM again WHERE i > 4;\n");
    assert_eq!(prints(address, &[], &input), "5|0.5|a b\n6||\n");
    write("1\ta\n2\tb,c\n");
    let input = format!("CREATE TABLE two(a, b);\n.import --tabs {path} two\nSELECT b FROM two;\n");
    assert_eq!(prints(address, &[], &input), "a\nb,c\n");

    // More than one request's worth, through triggers, and with a generated column, which is none of the file's.
    let many: String = (1..=1700).map(|n| format!("{n},{}\n", "x".repeat(1000))).collect();
    write(&many);
    let table = "CREATE TABLE many(n INTEGER PRIMARY KEY, t, twice AS (2*n)); CREATE TABLE seen(n);\n\
        CREATE TRIGGER see AFTER INSERT ON many BEGIN INSERT INTO seen VALUES(new.n); END;\n";
    let input = format!(
        "{table}.import --csv {path} many\nSELECT count(*), sum(twice) FROM many; SELECT count(*) FROM seen;"
    );
    assert_eq!(prints(address, &[], &input), format!("1700|{}\n1700\n", 1700 * 1701));

    // All or nothing, and where it went wrong.
    write(&format!("{}1700,again\n", (2001..=3000).map(|n| format!("{n},x\n")).collect::<String>()));
    fails(
        &format!(".import --csv {path} many\n"),
        "line 1001: UNIQUE constraint failed: many.n; nothing is imported",
    );
    write("4001,\"a\nb\"\n4002\n");
    fails(
        &format!(".import --csv {path} many\n"),
        "line 3: there are 1 columns, but the table has 2; nothing is imported",
    );
    write("4001,a\n4002,\"b\n");
    fails(&format!(".import --csv {path} many\n"), "line 2: the quote that begins there is never closed");
    write("a,a\n1,2\n");
    fails(&format!(".import --csv {path} twice\n"), "line 1: duplicate column name: a; nothing is imported");
    write("");
    fails(&format!(".import --csv {path} nothing\n"), "it has no rows, and there is no table nothing");
    fails(".import --csv /nonexistent t\n", "/nonexistent: No such file");
    fails(&format!(".import {path}\n"), "usage: .import");
    fails(&format!(".import --skip x {path} t\n"), "usage: .import");
    fails(&format!(".separator ab\n.import {path} t\n"), "columns can't be separated by \"ab\"");
    let ran = shell(address, &[], &format!("BEGIN;\n.import --csv {path} many\nROLLBACK;\n"));
    assert!(ran.status == 1 && ran.error.contains(".import: a transaction is open"), "{ran:?}");
    // Nothing is left of that, nor does anybody wait for it.
    let clean = "SELECT count(*), max(n) FROM many; INSERT INTO seen VALUES(0);\n\
        DROP TABLE people; DROP TABLE kinds; DROP TABLE again; DROP TABLE tabs; DROP TABLE two; DROP TABLE many; DROP TABLE seen;\n.tables";
    assert_eq!(prints(address, &[], clean), "1700|1700\nt\nu\nx\n");
}
