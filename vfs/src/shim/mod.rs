//! The shim: a VFS that wraps the host SQLite's default VFS, passes everything through, and makes an
//! exception of the main file and the WAL of replicated databases.
//!
//! | module | what it is |
//! |---|---|
//! | [`ffi`] | SQLite's C interface, and its functions as pointers |
//! | [`vfs`] | the VFS object: which opens are ours |
//! | [`mod@file`] | the trampolines of an open main file and of its WAL |
//! | [`connection`] | what the trampolines decide, in safe code |
//! | [`reads`] | how new a read has to be, and what to ask for that |
//! | [`pragma`] | pragmas: Quire's own, and those that are refused |
//! | `pages` | a transaction's pages, read back from the WAL piece by piece |
//! | `writers` | no handle writes to two replicated databases at once |
//! | [`host`] | safe access to a file of the host's VFS |
//! | [`extension`] | the entry points of the loadable extension |

pub mod connection;
pub mod extension;
pub mod ffi;
pub mod file;
pub mod host;
mod pages;
pub mod pragma;
pub mod reads;
pub mod vfs;
mod writers;
