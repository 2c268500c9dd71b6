//! From node/src/db.

#[path = "../../node/src/db/error.rs"]
mod error;
#[path = "../../node/src/db/incoming.rs"]
pub mod incoming;
#[path = "../../node/src/db/side_file.rs"]
pub mod side_file;

pub use error::DbError;
