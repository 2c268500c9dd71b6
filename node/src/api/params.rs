//! The query of a URL. Pure functions over text.

use std::time::Duration;

/// A duration in a query that is longer counts as this: clocks can be asked what the time will be then.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Query parameters; a bare key counts as true.
#[derive(Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Of the query of a URL.
    pub(crate) fn parse(query: &str) -> Params {
        Params(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    /// A duration as Go writes it: `500ms`, `2s`, `1m30s`; at most 30 days.
    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>, String> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let bad = || format!("{key}={text}: give a duration such as 500ms, 2s or 1m");
        go_duration(text).map(Some).ok_or_else(bad)
    }
}

fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() || text.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(split);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds.min(MAX_DURATION.as_secs_f64())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_flags() {
        let params =
            |text: &str| Params(vec![("timeout".into(), text.into()), ("pretty".into(), String::new())]);
        assert_eq!(params("500ms").duration("timeout"), Ok(Some(Duration::from_millis(500))));
        assert_eq!(params("1.5s").duration("timeout"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(params("2m").duration("timeout"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(params("1m30.5s").duration("timeout"), Ok(Some(Duration::from_millis(90_500))));
        assert_eq!(params("0").duration("timeout"), Ok(Some(Duration::ZERO)));
        assert_eq!(params("250µs").duration("timeout"), Ok(Some(Duration::from_micros(250))));
        for long in ["721h", "3000000000000000h", "3000000000000000h1s", &format!("{}h", "9".repeat(400))] {
            assert_eq!(params(long).duration("timeout"), Ok(Some(MAX_DURATION)), "{long}");
        }
        for bad in ["", "5", "s", "-1s", "1e400s", "5 s", "1s5", "1s5x"] {
            assert!(params(bad).duration("timeout").is_err(), "{bad}");
        }
        assert_eq!(params("1s").duration("other"), Ok(None));
        assert!(params("").flag("pretty") && !params("").flag("other"));
    }
}
