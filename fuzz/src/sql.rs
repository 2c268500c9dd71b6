//! From node/src/sql.

#[path = "../../node/src/sql/forward.rs"]
pub mod forward;
#[path = "../../node/src/sql/options.rs"]
pub mod options;
#[path = "../../node/src/sql/request.rs"]
pub mod request;
