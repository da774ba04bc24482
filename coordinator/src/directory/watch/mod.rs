//! What changes in a namespace, told to those who watch it.
//!
//! | file | what |
//! | --- | --- |
//! | `change`, `rows` | what is told |
//! | `log` | what was told of late: a ring of bounded size, read by any number of watchers |
//! | `watcher` | how far one of them is |
//! | `start` | watching begins: from a number on, or with all there is, slice by slice |
//! | `hooks` | where the directory says what it did |
//!
//! A namespace nobody watches has no log, and what changes in it costs a look at an empty option.

mod change;
mod hooks;
mod log;
mod rows;
mod start;
mod watcher;

use std::time::Duration;

pub use change::{Change, WatchedNode, WatchedRegion};
pub use rows::{CopyChange, Rows};
pub use start::{Scanned, WatchError};
pub use watcher::{WatchEnd, Watcher};

pub(super) use hooks::Telling;
pub(super) use log::Log;

/// Namespaces watched at a time: their logs take at most a gibibyte together.
const MAX_LOGS: usize = 32;
/// Watchers of one namespace: the routers of a large fleet. Each is a stream and wakes for every change.
const MAX_WATCHERS: usize = 64;
/// How long changes are kept for watchers that left: a router's restart, or a broken connection.
const LINGER: Duration = Duration::from_secs(60);
