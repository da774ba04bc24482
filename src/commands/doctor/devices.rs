//! RDMA: library, devices, ports, addresses.

use kvferry_ibverbs::{Context, GidPreference, Library, LinkLayer, Mtu, PortInfo};

use super::{Finding, State};

pub(super) fn look() -> Vec<Finding> {
    let library = match Library::load() {
        Ok(library) => library,
        Err(error) => {
            return vec![Finding::new(
                "libibverbs",
                State::Note,
                error.to_string(),
                "for RDMA, install it (Debian: apt-get install libibverbs1 ibverbs-providers; RHEL: libibverbs)",
            )];
        }
    };
    let mut findings = vec![Finding::ok("libibverbs", "loaded")];
    match library.devices() {
        Err(error) => findings.push(Finding::new("RDMA", State::Wrong, error.to_string(), "")),
        Ok(devices) if devices.is_empty() => findings.push(Finding::new(
            "RDMA",
            State::Note,
            "the kernel has RDMA and no device",
            "load the card's driver (mlx5_ib, irdma, bnxt_re, ...), or make a software device to try with: rdma link add rxe0 type rxe netdev eth0",
        )),
        Ok(devices) => {
            for device in devices {
                match device.open() {
                    Ok(context) => findings.extend(of_device(&context)),
                    Err(error) => {
                        let what = format!("RDMA device {}", device.name());
                        findings.push(Finding::new(what, State::Wrong, error.to_string(), ""));
                    }
                }
            }
            findings.push(dma_buf(library));
        }
    }
    findings
}

fn dma_buf(library: Library) -> Finding {
    let peer_memory = ["nvidia_peermem", "nv_peer_mem"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists());
    match (library.has_dmabuf(), peer_memory) {
        (true, module) => Finding::ok(
            "GPU memory by RDMA",
            format!(
                "libibverbs registers dma-buf descriptors; peer memory module: {}",
                module.unwrap_or("none")
            ),
        ),
        (false, Some(module)) => Finding::ok("GPU memory by RDMA", format!("by {module}")),
        (false, None) => Finding::new(
            "GPU memory by RDMA",
            State::Note,
            "neither dma-buf nor peer memory",
            "install rdma-core 34 or later, or load nvidia_peermem; without either, GPU memory is staged through host memory",
        ),
    }
}

fn of_device(context: &Context) -> Vec<Finding> {
    let name = context.name();
    let attributes = context.attributes();
    let node = context
        .numa_node()
        .map_or_else(|| "not known".to_owned(), |node| node.to_string());
    let kind = match context.is_software() {
        true => "software",
        false => "a card",
    };
    let mut findings = vec![Finding::ok(
        format!("RDMA device {name}"),
        format!(
            "{kind}, NUMA node {node}, firmware {}, {} queue pairs of {} READs, {} at a time",
            attributes.firmware,
            attributes.max_queue_pairs,
            attributes.max_queue_depth,
            attributes.initiator_depth
        ),
    )];
    match context.ports() {
        Ok(ports) => findings.extend(ports.iter().map(|port| of_port(context, port))),
        Err(error) => {
            let what = format!("RDMA device {name}");
            findings.push(Finding::new(what, State::Wrong, error.to_string(), ""));
        }
    }
    findings
}

fn of_port(context: &Context, port: &PortInfo) -> Finding {
    let what = format!("{} port {}", context.name(), port.number);
    let gids = match context.gids(port.number) {
        Ok(gids) => gids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Err(error) => return Finding::new(what, State::Wrong, error.to_string(), ""),
    };
    let detail = format!(
        "{}, {}, MTU {} of {}, GIDs: {}",
        port.state,
        port.link_layer,
        port.active_mtu.bytes(),
        port.max_mtu.bytes(),
        gids.join(", ")
    );
    match context.address(port.number, GidPreference::Auto) {
        // The error says what to do.
        Err(error) => Finding::new(what, State::Wrong, detail, error.to_string()),
        Ok(_) if port.link_layer == LinkLayer::Ethernet && port.active_mtu < Mtu::B4096 => {
            Finding::new(
                what,
                State::Note,
                detail,
                "raise the interface's MTU to 4200 or more (ip link set ... mtu 9000), on every switch too: packets of 4096 bytes cost less",
            )
        }
        Ok(_) => Finding::ok(what, detail),
    }
}
