//! What an agent tells its coordinators, and how they never lose track of it.
//!
//! The store records every change in the [`ChangeLog`], which numbers them in batches (deltas). One
//! session per coordinator reads the log at its own pace: the pure [`SessionMachine`] decides what
//! to send when, the [`SessionTask`] does it. Who falls behind the log's bound, or whose coordinator
//! forgot, sends a full inventory instead: nothing has to be remembered for ever.
//!
//! ```text
//! store --record--> ChangeLog --next(cursor)--> SessionMachine --Command--> task --stream--> coordinator
//!                                                     ^---------- Event ------------'
//! ```

mod copies;
mod delta;
mod inbound;
mod inventory;
mod log;
mod machine;
mod reads;
mod task;
#[cfg(test)]
mod tests;

pub use copies::CopyOrder;
pub use delta::{Delta, SlotState};
pub use inventory::inventory_messages;
pub use log::{ChangeLog, LogEntry, Open};
pub use machine::{Command, Event, SessionConfig, SessionMachine};
pub use reads::Reads;
pub use task::{Identity, InventorySource, KeySink, SessionStatus, SessionTask, SurplusSink};
