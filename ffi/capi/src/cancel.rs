//! Giving up a call that waits, from another thread.

use kvferry_client::Failure;
use tokio_util::sync::CancellationToken;

use crate::{
    boundary::{self, guard},
    kvf_error, kvf_status,
};

/// Gives up the calls that were given it: any number of them, of any agent.
pub struct kvf_canceller(CancellationToken);

// What the header promises: any thread, at any time.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<kvf_canceller>();
};

/// Of a call that may be given up; NULL: of one that is not.
///
/// # Safety
/// `canceller` is NULL or one that is not freed meanwhile.
pub(crate) unsafe fn token(canceller: *const kvf_canceller) -> Result<CancellationToken, Failure> {
    if canceller.is_null() {
        return Ok(CancellationToken::new());
    }
    // SAFETY: the caller's promise.
    let canceller = unsafe { boundary::reference(canceller, "the canceller") }?;
    Ok(canceller.0.clone())
}

/// Makes one. `*canceller` is then the caller's, to be given to kvf_canceller_free.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_canceller_new(
    canceller: *mut *mut kvf_canceller,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let place = boundary::out(canceller, "the place for the canceller")?;
            let made = kvf_canceller(CancellationToken::new());
            place.set(Box::into_raw(Box::new(made)));
            Ok(())
        })
    }
}

/// Gives up all calls that were given it, also those to come: they end soon, with KVF_CANCELLED. Nothing to do for those
/// that have ended. Never waits.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_cancel(
    canceller: *const kvf_canceller,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            boundary::reference(canceller, "the canceller")?.0.cancel();
            Ok(())
        })
    }
}

/// Frees one. Calls that were given it go on, and are not given up any more. NULL is nothing to free.
///
/// # Safety
/// The rules at the top; the last call with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_canceller_free(canceller: *mut kvf_canceller) {
    // SAFETY: it came from Box::into_raw, and this is the last call with it.
    unsafe { boundary::free(canceller) };
}
