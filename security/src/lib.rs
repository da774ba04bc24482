//! Who is at the door, and what they may do.
//!
//! Knows nothing of coordinators and agents: it turns files into rules, and callers into [`Access`].

pub mod access;
pub mod ticket;

pub use access::{Access, Right};
