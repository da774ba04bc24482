//! Brings blocks here: the pull engine and the shell that drives it.
