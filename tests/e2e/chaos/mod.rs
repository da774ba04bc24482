//! What goes wrong where this runs: processes that are killed and stopped, wires that are cut, narrow and lossy, limits
//! of the system that are reached, and crowds. Each ends in a full check: bytes, outcomes, directory, and what is left over.

mod crowds;
mod footprint;
mod killed;
mod limits;
mod wire;
mod wired;
