//! Keeping for ever what a GPU may still use.

/// Never drops `kept`: the GPU did not say that it is done with it, and memory that it may still write to must not be
/// handed on. The one place that forgets anything for a GPU's sake.
#[allow(clippy::disallowed_methods)] // see above
pub(crate) fn keep_for_ever<T>(kept: T) {
    std::mem::forget(kept);
}
