//! Copies: how many there should be, and who is told to make them.
//!
//! | file | what |
//! | --- | --- |
//! | `wants` | what is asked for: copies of a namespace, of hot blocks, drains |
//! | `rounds` | looks through the directory for what is lacking, a slice at a time, again and again |
//! | `choice` | which of many targets takes a block |
//! | `planner` | **pure**: what is lacking -> orders to agents, bounded, and what came of them |
//!
//! Nothing is remembered of a block but that an order for it is under way, and where one failed lately:
//! what is lacking is seen in the directory, in the next round as in this one.

mod choice;
mod planner;
mod rounds;
#[cfg(test)]
mod tests;
mod wants;

pub use planner::{Cause, Lack, Order, OrderId, Outcome, Plan, Planner, Sight, Verdict};
pub use rounds::{Rounds, Seen};
pub use wants::{
    CopiesStatus, DEFAULT_DRAIN, DEFAULT_HOT, DrainState, DrainStatus, MAX_COPIES, MAX_TIME, Sums,
    TooManyHot, Wants,
};
