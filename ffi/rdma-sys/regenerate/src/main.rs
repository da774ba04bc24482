//! Writes `../src/bindings.rs` from the installed `infiniband/verbs.h`. See `../regenerate.sh`.

/// Every program with this crate needs them; [`kvferry_rdma_sys::Verbs::load`] checks that they are there.
const REQUIRED: &[&str] = &[
    "ibv_get_device_list",
    "ibv_free_device_list",
    "ibv_get_device_name",
    "ibv_get_device_guid",
    "ibv_open_device",
    "ibv_close_device",
    "ibv_query_device",
    "ibv_query_port",
    "ibv_query_gid",
    "ibv_alloc_pd",
    "ibv_dealloc_pd",
    "ibv_reg_mr",
    "ibv_dereg_mr",
    "ibv_create_comp_channel",
    "ibv_destroy_comp_channel",
    "ibv_create_cq",
    "ibv_destroy_cq",
    "ibv_get_cq_event",
    "ibv_ack_cq_events",
    "ibv_create_qp",
    "ibv_modify_qp",
    "ibv_query_qp",
    "ibv_destroy_qp",
    "ibv_get_async_event",
    "ibv_ack_async_event",
];

/// Later additions to libibverbs: looked for when the program runs.
const OPTIONAL: &[&str] = &[
    "_ibv_query_gid_table",
    "ibv_reg_mr_iova2",
    "ibv_reg_dmabuf_mr",
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(include), Some(out)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: regenerate-rdma-bindings INCLUDE_DIR OUT_FILE");
        std::process::exit(2);
    };
    let functions = [REQUIRED, OPTIONAL].concat().join("|");
    let bindings = bindgen::Builder::default()
        .header_contents("wrapper.h", "#include <infiniband/verbs.h>\n")
        .clang_arg(format!("-I{include}"))
        .allowlist_function(functions)
        .allowlist_type("pthread_(mutex|cond)_t|ibv_(send_wr|sge|wc|port_attr|gid_entry|access_flags|qp_attr_mask|send_flags|gid_type|link_layer)")
        // Their size differs between architectures; nothing here looks into or behind them.
        .opaque_type("pthread_.*")
        .constified_enum_module(
            "ibv_(qp_state|qp_type|wc_status|wc_opcode|wr_opcode|port_state|mtu|event_type|gid_type)",
        )
        .bitfield_enum("ibv_(access_flags|qp_attr_mask|send_flags|wc_flags|device_cap_flags)")
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_debug(false)
        .generate_comments(false)
        .dynamic_library_name("Ibv")
        .dynamic_link_require_all(false)
        .layout_tests(true)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("a version bindgen knows"))
        .wrap_unsafe_ops(true)
        .raw_line("// From rdma-core's infiniband/verbs.h, by ../regenerate.sh. Do not edit.")
        .generate()
        .expect("bindgen understands verbs.h");
    bindings.write_to_file(out).expect("the output can be written");
}
