//! Keeping for ever what a device may still use.

/// Never drops `kept`: the device did not let go of it, and memory that a device may still write to must
/// not be handed on. The one place where this crate forgets anything.
#[allow(clippy::disallowed_methods)] // see above
pub(crate) fn keep_for_ever<T>(kept: T) {
    std::mem::forget(kept);
}
