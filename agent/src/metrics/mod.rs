//! What an agent says of itself: `kvferry stats` and the metrics port read the same counters.
//!
//! | file | what |
//! | --- | --- |
//! | `pulls` | pulls and what became of their blocks; copies ordered; pulls of tensors |
//! | `page` | names and texts, and what is read from the store and the sessions for a scrape |
//!
//! Counters of a part live with it: `transfer/metrics.rs`, `transport/links.rs`. No label names a
//! namespace, a region or a peer; coordinators are at most eight, by configuration.

mod page;
mod pulls;

pub(crate) use page::AgentObserved;
pub(crate) use pulls::{CopyVerdict, PullMetrics, TensorsEnd};
