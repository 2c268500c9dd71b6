//! Bodies of HTTP requests for SQL. Even first byte: JSON; odd: plain text. Against `serde_json`'s own tree: what is
//! taken is JSON of the documented form, each statement and value means what stands there, bounds hold, no SQL has a NUL; and
//! JSON of that form is taken. What a body costs in memory is in proportion to it (`-malloc_limit_mb`).

use crate::sql::request::{
    Kind, MAX_PARAMETERS, MAX_STATEMENTS, Output, Param, ParseError, Request, Statement, parse_json,
    parse_text,
};
use rusqlite::types::Value;
use serde_json::Value as Json;

/// One run.
pub fn run(data: &[u8]) {
    let Some((&mode, body)) = data.split_first() else { return };
    if mode % 2 == 1 {
        return text(body);
    }
    let tree = serde_json::from_slice::<Json>(body);
    let statements = match parse_json(body) {
        Ok(statements) => statements,
        Err(error) => {
            // Deep nesting is refused by both; of what is left, only the form may be wrong.
            if let Ok(tree) = &tree {
                assert!(!matches!(error, ParseError::Json(_)), "{error} though it is JSON");
                assert!(form(tree).is_none(), "{error} though it is of the form");
            }
            return;
        }
    };
    // A tree doesn't say which came first of two equal names, nor that there were two.
    if let Ok(tree) = &tree
        && !statements.iter().any(|s| has_twice(&s.params))
    {
        let mut expected = form(tree).expect("what is taken has the form");
        let mut found = statements.clone();
        [&mut expected, &mut found].into_iter().for_each(|list| list.iter_mut().for_each(sort));
        assert_eq!(found, expected);
    }
    assert!(!statements.is_empty() && statements.len() <= MAX_STATEMENTS);
    for statement in &statements {
        assert!(!statement.sql.contains('\0') && statement.params.len() <= MAX_PARAMETERS);
    }
    let request = Request {
        kind: Kind::Request,
        statements,
        transaction: false,
        output: Output::default(),
        db_timeout: None,
    };
    assert!(request.size() <= 4096 + 128 * body.len(), "{} for {} bytes", request.size(), body.len());
}

fn text(body: &[u8]) {
    match parse_text(body) {
        Ok(statements) => {
            assert_eq!(statements.len(), 1);
            assert_eq!(statements[0].sql.as_bytes(), body);
            assert!(!body.contains(&0));
        }
        Err(ParseError::Empty) => assert!(std::str::from_utf8(body).is_ok_and(|text| text.trim().is_empty())),
        Err(_) => assert!(body.contains(&0) || std::str::from_utf8(body).is_err()),
    }
}

fn has_twice(params: &[Param]) -> bool {
    let mut names: Vec<_> = params.iter().filter_map(|param| param.name.as_ref()).collect();
    names.sort();
    names.windows(2).any(|two| two[0] == two[1])
}

/// A tree forgets the order of names.
fn sort(statement: &mut Statement) {
    statement.params.sort_by(|a, b| a.name.cmp(&b.name));
}

/// The statements of a tree, if it is of the form.
fn form(tree: &Json) -> Option<Vec<Statement>> {
    let items = tree.as_array().filter(|items| !items.is_empty() && items.len() <= MAX_STATEMENTS)?;
    items.iter().map(statement).collect()
}

fn statement(item: &Json) -> Option<Statement> {
    let (sql, rest) = match item {
        Json::String(sql) => (sql, &[][..]),
        Json::Array(items) => match items.split_first()? {
            (Json::String(sql), rest) => (sql, rest),
            _ => return None,
        },
        _ => return None,
    };
    if sql.contains('\0') {
        return None;
    }
    let mut params = Vec::new();
    for item in rest {
        match item {
            Json::Object(named) => {
                for (name, item) in named {
                    params.push(Param { name: Some(name.clone()), value: value(item)? });
                }
            }
            item => params.push(Param { name: None, value: value(item)? }),
        }
    }
    (params.len() <= MAX_PARAMETERS).then(|| Statement { sql: sql.clone(), params })
}

fn value(item: &Json) -> Option<Value> {
    Some(match item {
        Json::Null => Value::Null,
        Json::Bool(it) => Value::Integer((*it).into()),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => Value::Integer(n),
            (None, Some(n)) => Value::Real(n),
            (None, None) => return None,
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(bytes) => {
            let byte = |item: &Json| item.as_u64().and_then(|n| u8::try_from(n).ok());
            Value::Blob(bytes.iter().map(byte).collect::<Option<_>>()?)
        }
        Json::Object(_) => return None,
    })
}
