//! Traces: hooks that cost a load where the program exports none.
//!
//! Spans are made with [`traced!`](crate::traced!), under a target of their own. The program that
//! exports them installs a [`Propagator`], which knows how a trace goes on in another process (W3C's
//! `traceparent`); nobody else depends on OpenTelemetry.

use std::sync::OnceLock;

use tracing::Span;

/// What spans of traces have as their target, so that logs need not show them.
pub const TARGET: &str = "kvferry_trace";
/// The header a trace travels in, in HTTP and in gRPC metadata.
pub const HEADER: &str = "traceparent";
/// A `traceparent` of today's version; one of a later version may be longer, and is cut off here.
const MAX_BYTES: usize = 256;

/// How a trace goes on in another process.
pub trait Propagator: Send + Sync + 'static {
    /// The `traceparent` of what goes on under this span; None where nothing of it is exported.
    fn carry(&self, span: &Span) -> Option<String>;
    /// Makes the span part of the trace that came with a request. Nonsense is ignored.
    fn adopt(&self, span: &Span, traceparent: &str);
}

static PROPAGATOR: OnceLock<Box<dyn Propagator>> = OnceLock::new();

/// From now on traces are exported. False where that was so before: the first one stays.
pub fn install(propagator: impl Propagator) -> bool {
    PROPAGATOR.set(Box::new(propagator)).is_ok()
}

/// Are traces exported?
#[must_use]
pub fn on() -> bool {
    PROPAGATOR.get().is_some()
}

/// What a request made under the current span says, so that its trace goes on there.
#[must_use]
pub fn traceparent() -> Option<String> {
    PROPAGATOR.get()?.carry(&Span::current())
}

/// Makes a span part of the trace a request came with.
pub fn adopt(span: &Span, traceparent: Option<&[u8]>) {
    if let (Some(propagator), Some(bytes)) = (PROPAGATOR.get(), traceparent)
        && bytes.len() <= MAX_BYTES
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        propagator.adopt(span, text);
    }
}

/// A span of a trace, as `tracing::info_span!` makes them; none where traces are not exported.
#[macro_export]
macro_rules! traced {
    ($name:literal $($fields:tt)*) => {
        if $crate::trace::on() {
            $crate::tracing::info_span!(target: "kvferry_trace", $name $($fields)*)
        } else {
            $crate::tracing::Span::none()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_where_nothing_is_exported() {
        assert!(!on());
        assert!(traced!("work", blocks = 3).is_none());
        assert_eq!(traceparent(), None);
        adopt(&Span::none(), Some(b"00-1-2-01"));
    }
}
