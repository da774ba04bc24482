//! Raw bindings of libibverbs, generated from rdma-core's headers (`regenerate.sh`) and loaded when
//! the program runs: a machine without libibverbs gets a [`LoadError`] and no failed start, and
//! building needs neither the headers nor libclang.
//!
//! [`Verbs`] derefs to the generated [`Ibv`]. Its methods `ibv_*` call the library; those that
//! [`Verbs::load`] did not check (the fields named in [`OPTIONAL`]) are to be looked at first:
//! `verbs.ibv_reg_dmabuf_mr.is_ok()`.
//!
//! The verbs of the data path (`ibv_post_send`, `ibv_poll_cq`, `ibv_req_notify_cq`) are inline
//! functions of the header, not symbols of the library: they go through the table in
//! [`ibv_context::ops`], see [`post_send`], [`poll_cq`] and [`req_notify_cq`].

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the bindings describe libibverbs on 64-bit Linux");

use std::{ffi::c_int, ops::Deref, sync::Mutex};

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::expect_used,
    clippy::undocumented_unsafe_blocks
)]
mod bindings;
mod ops;

pub use bindings::*;
pub use ops::{poll_cq, post_send, req_notify_cq};

/// The name that is looked for. The version is the one of the ABI, unchanged since 2005.
pub const LIBRARY: &str = "libibverbs.so.1";

/// Functions that not every libibverbs has.
pub const OPTIONAL: &[&str] = &[
    "_ibv_query_gid_table",
    "ibv_reg_mr_iova2",
    "ibv_reg_dmabuf_mr",
];

/// Why there are no verbs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The library is not there, or does not load.
    #[error(
        "cannot load {name}: {said}; install it (Debian: libibverbs1 ibverbs-providers, \
         RHEL: libibverbs rdma-core) to use RDMA"
    )]
    Library {
        /// What was looked for.
        name: &'static str,
        /// What the loader said.
        said: String,
    },
    /// A library of that name lacks a function that every libibverbs has.
    #[error("{name} has no {symbol}: {said}; it is no libibverbs, or one from before 2010")]
    Symbol {
        /// What was loaded.
        name: &'static str,
        /// What is missing.
        symbol: &'static str,
        /// What the loader said.
        said: String,
    },
}

/// The loaded library. It is never unloaded: its providers keep state behind the program's back.
pub struct Verbs(Ibv);

impl Verbs {
    /// Loads the library, once for the whole program.
    ///
    /// # Errors
    /// [`LoadError`]. Another call tries again.
    pub fn load() -> Result<&'static Self, LoadError> {
        static LOADED: Mutex<Option<&'static Verbs>> = Mutex::new(None);
        let mut loaded = LOADED
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(verbs) = *loaded {
            return Ok(verbs);
        }
        let verbs: &'static Self = Box::leak(Box::new(Self::load_from(LIBRARY)?));
        *loaded = Some(verbs);
        Ok(verbs)
    }

    fn load_from(name: &'static str) -> Result<Self, LoadError> {
        // SAFETY: a library of this name runs initialisers that have been safe to run in any
        // program since 2005; whoever can put another one there can replace this program too.
        let raw = unsafe { Ibv::new(name) }.map_err(|error| LoadError::Library {
            name,
            said: said(&error),
        })?;
        let missing = |symbol, error: &libloading::Error| LoadError::Symbol {
            name,
            symbol,
            said: said(error),
        };
        macro_rules! require {
            ($($symbol:ident)*) => {
                $(if let Err(error) = &raw.$symbol {
                    return Err(missing(stringify!($symbol), error));
                })*
            };
        }
        require! {
            ibv_get_device_list ibv_free_device_list ibv_get_device_name ibv_get_device_guid
            ibv_open_device ibv_close_device ibv_query_device ibv_query_port ibv_query_gid
            ibv_alloc_pd ibv_dealloc_pd ibv_reg_mr ibv_dereg_mr
            ibv_create_comp_channel ibv_destroy_comp_channel ibv_create_cq ibv_destroy_cq
            ibv_get_cq_event ibv_ack_cq_events ibv_create_qp ibv_modify_qp ibv_query_qp
            ibv_destroy_qp ibv_get_async_event ibv_ack_async_event
        }
        Ok(Self(raw))
    }
}

impl Deref for Verbs {
    type Target = Ibv;

    fn deref(&self) -> &Ibv {
        &self.0
    }
}

impl std::fmt::Debug for Verbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(LIBRARY)
    }
}

/// libloading's own text names the call that failed; the loader's is inside.
fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A return value of the verbs that answer with an errno (or, in some providers, with -1).
#[must_use]
pub fn errno(result: c_int) -> Option<std::io::Error> {
    match result {
        0 => None,
        -1 => Some(std::io::Error::last_os_error()),
        errno => Some(std::io::Error::from_raw_os_error(errno.saturating_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_what_the_loader_said() {
        let error = Verbs::load_from("libibverbs-not-there.so.1").unwrap_err();
        assert!(matches!(&error, LoadError::Library { name, said }
            if *name == "libibverbs-not-there.so.1" && said.contains("No such file")));
    }

    #[test]
    fn a_library_without_verbs_is_refused_with_the_name_of_what_it_lacks() {
        let error = Verbs::load_from("libc.so.6").unwrap_err();
        assert!(
            matches!(&error, LoadError::Symbol { symbol, said, .. }
                if *symbol == "ibv_get_device_list" && said.contains("undefined symbol")),
            "{error}"
        );
    }

    #[test]
    fn errors_come_as_numbers_of_either_sign() {
        assert!(errno(0).is_none());
        assert_eq!(errno(12).and_then(|e| e.raw_os_error()), Some(12));
        assert_eq!(errno(-12).and_then(|e| e.raw_os_error()), Some(12));
    }
}
