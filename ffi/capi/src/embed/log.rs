//! What an embedded agent has to say, for the host's log.

use std::{
    ffi::{CString, c_char, c_void},
    fmt::{self, Write},
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
};

use kvferry_client::Failure;
use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};

/// Something does not work.
pub const KVF_LOG_ERROR: u32 = 1;
/// Something is not as it should be.
pub const KVF_LOG_WARN: u32 = 2;
/// What an operator wants to know: it starts, stops, connects.
pub const KVF_LOG_INFO: u32 = 3;
/// What helps to find a fault.
pub const KVF_LOG_DEBUG: u32 = 4;
/// Everything.
pub const KVF_LOG_TRACE: u32 = 5;

/// Told what an embedded agent has to say: KVF_LOG_ERROR to KVF_LOG_TRACE, the part of the agent that says it, and a line of
/// text; both texts end with the call. Called from the agent's threads, from several at a time; it must return soon,
/// and must not call the library (KVF_WRONG_THREAD).
pub type kvf_log_callback = Option<
    unsafe extern "C" fn(level: u32, part: *const c_char, line: *const c_char, user: *mut c_void),
>;

/// Where the agent's words go; None where nobody wants them.
pub(super) fn dispatch(
    callback: kvf_log_callback,
    user: *mut c_void,
    level: u32,
) -> Result<Option<Dispatch>, Failure> {
    let level = match level {
        KVF_LOG_ERROR => Level::ERROR,
        0 | KVF_LOG_WARN => Level::WARN,
        KVF_LOG_INFO => Level::INFO,
        KVF_LOG_DEBUG => Level::DEBUG,
        KVF_LOG_TRACE => Level::TRACE,
        _ => return Err(Failure::invalid(format!("log_level {level} is none"))),
    };
    Ok(callback.map(|function| {
        Dispatch::new(Log {
            level,
            function,
            user,
            spans: AtomicU64::new(1),
        })
    }))
}

struct Log {
    level: Level,
    function: unsafe extern "C" fn(u32, *const c_char, *const c_char, *mut c_void),
    user: *mut c_void,
    spans: AtomicU64,
}

// SAFETY: `user` is only handed back to C; the header says that the callback is called from several threads at a time, so
// `user` is meant for it.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Of the libraries beneath only what is wrong: finer words of theirs are about bytes and frames.
        let ours = metadata.target().starts_with("kvferry") || metadata.target() == "audit";
        *metadata.level() <= self.level && (ours || *metadata.level() <= Level::WARN)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    /// Spans are not told: lines name whom they are about.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        let number = self.spans.fetch_add(1, Ordering::Relaxed);
        Id::from_non_zero_u64(NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => KVF_LOG_ERROR,
            Level::WARN => KVF_LOG_WARN,
            Level::INFO => KVF_LOG_INFO,
            Level::DEBUG => KVF_LOG_DEBUG,
            Level::TRACE => KVF_LOG_TRACE,
        };
        let part = to_c(event.metadata().target().to_owned());
        let line = to_c(line.message + &line.fields);
        // SAFETY: the function is the caller's, given for this; the texts last for the call.
        unsafe { (self.function)(level, part.as_ptr(), line.as_ptr(), self.user) };
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A NUL within would end it for C.
fn to_c(text: String) -> CString {
    let text = match text.contains('\0') {
        true => text.replace('\0', " "),
        false => text,
    };
    CString::new(text).unwrap_or_default()
}

/// An event in one line: what it says, then what it is about.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, sync::Mutex};

    use super::*;

    unsafe extern "C" fn note(
        level: u32,
        part: *const c_char,
        line: *const c_char,
        user: *mut c_void,
    ) {
        // SAFETY: the test's own list, and texts that end with a NUL.
        let (seen, part, line) = unsafe {
            (
                &*user.cast::<Mutex<Vec<String>>>(),
                CStr::from_ptr(part).to_string_lossy(),
                CStr::from_ptr(line).to_string_lossy(),
            )
        };
        seen.lock().unwrap().push(format!("{level} {part}: {line}"));
    }

    #[test]
    fn lines_say_what_and_about_whom_no_finer_than_asked() {
        let seen = Mutex::new(Vec::<String>::new());
        let user = (&raw const seen).cast_mut().cast();
        let log = dispatch(Some(note), user, KVF_LOG_INFO).unwrap().unwrap();
        tracing::dispatcher::with_default(&log, || {
            tracing::info!(target: "kvferry_agent::x", node = "n\0", count = 3, "it is {}", "so");
            tracing::debug!(target: "kvferry_agent::x", "finer");
            tracing::info!(target: "h2", "a frame");
            tracing::warn!(target: "h2", "wrong");
        });
        let seen = seen.into_inner().unwrap();
        assert_eq!(
            seen,
            [
                "3 kvferry_agent::x: it is so node=\"n\\0\" count=3",
                "2 h2: wrong"
            ]
        );
    }

    #[test]
    fn nobody_and_nonsense() {
        let nobody = std::ptr::null_mut();
        assert!(dispatch(None, nobody, 0).unwrap().is_none());
        assert!(dispatch(Some(note), nobody, 6).is_err());
    }
}
