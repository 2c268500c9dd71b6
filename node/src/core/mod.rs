//! What the node decides, apart from how it finds out and carries it out: sans-io state machines. Events and
//! the time go in, actions come out.
//!
//! | module | the question it answers |
//! |---|---|
//! | [`lease`] | who may write a database next |
//! | [`head`] | what the log says of a database, ahead of its files |
//! | [`rule`] | which committed entries change a database (the commit rule) |
//! | [`run`] | which runs of entries make a large transaction |
//! | [`recovery`] | what a restarted node makes of the files that it finds |

pub mod head;
pub mod lease;
pub mod recovery;
pub mod rule;
pub mod run;
