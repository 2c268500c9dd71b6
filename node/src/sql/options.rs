//! The parameters of a request for SQL. A bare key means true.

use super::request::Output;
use crate::api::Params;
use std::time::Duration;

/// How long a request may take, unless it says.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that may be asked for.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long confirming the lead may take, unless the request says.
const LINEARIZABLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What this node has.
    None,
    /// What the leader has, as far as it knows that it leads.
    Weak,
    /// What the leader has, after a quorum has confirmed it.
    Linearizable,
    /// After an entry of the log that is appended for it.
    Strong,
    /// None on a read replica, else weak.
    Auto,
}

/// Parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How results look.
    pub output: Output,
    /// All or nothing.
    pub transaction: bool,
    /// Answer at once, write later.
    pub queue: bool,
    /// Answer when what is queued has been written.
    pub wait: bool,
    /// For the whole request.
    pub timeout: Duration,
    /// For its statements.
    pub db_timeout: Option<Duration>,
    /// How often to try again elsewhere; as often as the time allows if not given.
    pub retries: Option<u32>,
    /// Say where the leader is, instead of asking it.
    pub redirect: bool,
    /// How fresh a read must be.
    pub level: Level,
    /// How long ago this node may have heard of the leader.
    pub freshness: Option<Duration>,
    /// Also, this node must have applied what it knows to be committed.
    pub freshness_strict: bool,
    /// For a quorum to confirm the lead.
    pub linearizable_timeout: Duration,
    /// The database.
    pub database: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            output: Output::default(),
            transaction: false,
            queue: false,
            wait: false,
            timeout: TIMEOUT,
            db_timeout: None,
            retries: None,
            redirect: false,
            level: Level::Weak,
            freshness: None,
            freshness_strict: false,
            linearizable_timeout: LINEARIZABLE_TIMEOUT,
            database: "main".into(),
        }
    }
}

impl Options {
    /// Reads them; the error is for the client.
    pub fn new(params: &Params) -> Result<Options, String> {
        let level = match params.get("level").map(str::to_lowercase).as_deref() {
            Some("none") => Level::None,
            Some("linearizable") => Level::Linearizable,
            Some("strong") => Level::Strong,
            Some("auto") => Level::Auto,
            _ => Level::Weak,
        };
        let freshness = params.duration("freshness")?;
        let freshness_strict = params.flag("freshness_strict");
        if freshness_strict && freshness.is_none() {
            return Err("freshness_strict needs freshness, such as freshness=1s".into());
        }
        let retries = match params.get("retries") {
            None | Some("") => None,
            Some(text) => {
                Some(text.parse().map_err(|_| format!("retries={text}: give a whole number from 0 on"))?)
            }
        };
        let database = params.get("db").unwrap_or("main");
        crate::name::check(database).map_err(|why| why.to_string())?;
        Ok(Options {
            output: Output {
                pretty: params.flag("pretty"),
                timings: params.flag("timings"),
                associative: params.flag("associative"),
                blob_array: params.flag("blob_array"),
                raft_index: params.flag("raft_index"),
            },
            transaction: params.flag("transaction"),
            queue: params.flag("queue"),
            wait: params.flag("wait"),
            timeout: params.duration("timeout")?.unwrap_or(TIMEOUT).min(MAX_TIMEOUT),
            db_timeout: params.duration("db_timeout")?.filter(|timeout| !timeout.is_zero()),
            retries,
            redirect: params.flag("redirect"),
            level,
            freshness,
            freshness_strict,
            linearizable_timeout: params.duration("linearizable_timeout")?.unwrap_or(LINEARIZABLE_TIMEOUT),
            database: database.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str) -> Result<Options, String> {
        Options::new(&Params::parse(query))
    }

    #[test]
    fn defaults() {
        let all = options("").unwrap();
        assert_eq!(all, Options::default());
        assert_eq!(all.output, Output::default());
        assert!(!(all.transaction || all.queue || all.wait || all.redirect || all.freshness_strict));
        assert_eq!((all.timeout, all.db_timeout, all.retries), (Duration::from_secs(30), None, None));
        assert_eq!((all.level, all.freshness), (Level::Weak, None));
        assert_eq!(all.linearizable_timeout, Duration::from_secs(10));
        assert_eq!(all.database, "main");
    }

    #[test]
    fn each() {
        let all = options(
            "pretty&timings&associative&blob_array&raft_index&transaction&queue&wait&timeout=5s&db_timeout=20ms&\
             retries=2&redirect&level=none&freshness=1s&freshness_strict&linearizable_timeout=2s&db=other&\
             noparse&norwrandom&norwtime",
        );
        let all = all.unwrap();
        let output =
            Output { pretty: true, timings: true, associative: true, blob_array: true, raft_index: true };
        assert_eq!(all.output, output);
        assert!(all.transaction && all.queue && all.wait && all.redirect && all.freshness_strict);
        assert_eq!((all.timeout, all.db_timeout), (Duration::from_secs(5), Some(Duration::from_millis(20))));
        assert_eq!((all.retries, all.level), (Some(2), Level::None));
        assert_eq!(
            (all.freshness, all.linearizable_timeout),
            (Some(Duration::from_secs(1)), Duration::from_secs(2))
        );
        assert_eq!(all.database, "other");
    }

    #[test]
    fn levels() {
        let level = |text: &str| options(&format!("level={text}")).unwrap().level;
        assert_eq!(level("STRONG"), Level::Strong);
        assert_eq!(level("linearizable"), Level::Linearizable);
        assert_eq!(level("auto"), Level::Auto);
        assert_eq!(level("weak"), Level::Weak);
        assert_eq!(level("nonsense"), Level::Weak);
        assert_eq!(level(""), Level::Weak);
    }

    #[test]
    fn bad_ones() {
        for bad in [
            "timeout=5",
            "timeout",
            "db_timeout=x",
            "freshness=-1s",
            "freshness_strict",
            "retries=x",
            "retries=-1",
            "linearizable_timeout=1",
            "db=",
            "db=..%2Fx",
        ] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }
}
