//! What a process says of itself: counters and histograms that cost a relaxed atomic or two, and the
//! HTTP port they are read from (`/metrics`, `/healthz`, `/readyz`).
//!
//! Whoever has numbers implements [`Observed`] and writes them to a [`Page`], family by family, under
//! their full names. Nothing is registered twice and nothing is copied: a scrape reads the very
//! counters that `kvferry stats` reads. Labels are enums ([`label!`]) or bounded by the configuration,
//! so that the number of series is known when the program is built.

mod counter;
mod histogram;
mod label;
mod listen;
mod page;
mod process;
mod reader;
mod server;
pub mod trace;

pub use counter::{Counter, Gauge};
pub use histogram::{BOUNDS, Histogram};
pub use label::{ByLabel, ByLabels, Label};
pub use listen::{ListenError, MetricsListen};
pub use page::{Family, Page, families, scrape};
pub use reader::read_page;
#[cfg(feature = "fuzzing")]
pub use server::converse_with;
pub use server::{BindError, MetricsServer};
#[doc(hidden)]
pub use tracing;

use std::{borrow::Cow, fmt};

/// A process that can be asked how it is. Both calls may come at any time, several at once.
pub trait Observed: Send + Sync + 'static {
    /// Writes every family. Must not scan: what is expensive to count is counted as it changes.
    ///
    /// # Errors
    /// Those of the page; there are none of its own.
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result;

    /// Should it be sent work? Else, why not, in one line for people.
    ///
    /// # Errors
    /// [`NotReady`].
    fn ready(&self) -> Result<(), NotReady>;
}

/// Why a process should not be sent work now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(pub Cow<'static, str>);

impl From<&'static str> for NotReady {
    fn from(why: &'static str) -> Self {
        Self(why.into())
    }
}
