//! Commands that tell what is in a database, and which databases there are.

use super::cell::Cell;
use super::complete::Names;
use super::dot_cluster::print;
use super::error::Error;
use super::output::visible;
use super::{Flow, Shell};
use crate::cli::backup;
use serde_json::json;
use unicode_width::UnicodeWidthStr;

/// SQLite's own tables are not shown.
const OWN: &str = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
/// A terminal has so many columns.
const WIDTH: usize = 80;
/// Completion knows no more columns.
const MAX_NAMES: usize = 20_000;

impl Shell {
    /// What completion offers: asked for when it is needed first, and again after the schema has changed.
    pub(super) fn names(&mut self) -> Names {
        if self.names.is_none() {
            self.names = self.look_up();
        }
        self.names.clone().unwrap_or_default()
    }

    fn look_up(&mut self) -> Option<Names> {
        let tables = format!("FROM sqlite_master AS m WHERE m.type IN ('table','view') AND m.{OWN}");
        let columns = tables.replace(" WHERE", " LEFT JOIN pragma_table_info(m.name) AS p WHERE");
        let all = self.session.glance(&format!("SELECT m.name, p.name {columns} LIMIT {MAX_NAMES}"));
        // A view that makes no sense has no columns, and is an error.
        let all =
            all.or_else(|| self.session.glance(&format!("SELECT name, NULL {tables} LIMIT {MAX_NAMES}")));
        let mut names: Vec<(String, Vec<String>)> = Vec::new();
        for row in all?.0 {
            let mut cells = row.into_iter();
            let (Some(Cell::Text(table)), column) = (cells.next(), cells.next()) else { continue };
            if names.last().is_none_or(|(last, _)| *last != table) {
                names.push((table, Vec::new()));
            }
            if let (Some((_, columns)), Some(Cell::Text(column))) = (names.last_mut(), column) {
                columns.push(column);
            }
        }
        Some(Names(names))
    }

    /// Prints names: at a terminal in columns, else one on each line.
    fn list(&mut self, sql: &str, pattern: Option<&String>) -> Result<Flow, Error> {
        let pattern = pattern.map_or("%", String::as_str);
        let rows = self.session.rows(sql, &[json!(pattern)])?.0;
        let names: Vec<String> =
            rows.into_iter().flatten().map(|cell| visible(&cell.text("")).into_owned()).collect();
        let widest = names.iter().map(|name| name.width()).max().unwrap_or(0) + 2;
        let per_line = if self.output.is_terminal() { (WIDTH / widest).max(1) } else { 1 };
        // Down the columns, as in ls.
        let lines = names.len().div_ceil(per_line);
        for line in 0..lines {
            let mut text = String::new();
            for name in names.iter().skip(line).step_by(lines) {
                text += name;
                text += &" ".repeat(widest - name.width());
            }
            self.output.line(text.trim_end())?;
        }
        Ok(Flow::Go)
    }
}

pub(super) fn tables(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let sql = format!(
        "SELECT name FROM sqlite_master WHERE type IN ('table','view') AND {OWN} AND name LIKE ? ORDER BY name"
    );
    shell.list(&sql, args.first())
}

pub(super) fn indexes(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let sql = "SELECT name FROM sqlite_master WHERE type='index' AND tbl_name LIKE ? ORDER BY name";
    shell.list(sql, args.first())
}

pub(super) fn schema(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    let sql = format!(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND {OWN} AND tbl_name LIKE ? \
         ORDER BY tbl_name, type='table' DESC, type='view' DESC, name"
    );
    let pattern = args.first().map_or("%", String::as_str);
    for row in shell.session.rows(&sql, &[json!(pattern)])?.0 {
        for cell in row {
            shell.output.line(&format!("{};", cell.text("")))?;
        }
    }
    Ok(Flow::Go)
}

pub(super) fn db(shell: &mut Shell, args: &[String]) -> Result<Flow, Error> {
    match args.first() {
        None => shell.output.line(shell.session.database())?,
        Some(name) => {
            shell.session.switch(name)?;
            shell.names = None;
        }
    }
    Ok(Flow::Go)
}

pub(super) fn dbs(shell: &mut Shell, _: &[String]) -> Result<Flow, Error> {
    shell.session.quire(".dbs")?;
    let client = shell.session.nodes.client_that_answers()?;
    let all = backup::databases(&client)?;
    print(shell, &["name", "page_size", "bytes", "index", "fenced"], &all)
}
