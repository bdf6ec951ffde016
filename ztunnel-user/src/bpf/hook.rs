//! The programs of the cgroup: attaches them once per instance and keeps them attached without this process. They hang
//! at the root, so they see every socket of the machine; whose sockets they act on is decided in the programs.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockopt, ProgramError, SockOps, links::FdLink},
};

use super::{
    BpfError,
    attach::{pin, program, remove_pins, replace_pin, step},
    link,
};

/// At connect() and getpeername(): minimum kernel 5.8.
const ADDRESS_PROGRAMS: [&str; 4] = ["app_peername4", "app_peername6", "app_connect4", "app_connect6"];
const SETSOCKOPT: &str = "app_setsockopt";
const FLOW: &str = "app_flow";
/// Folder of the links' pins, beside those of the pods.
const PINS: &str = "cgroup";

/// Loads the programs and attaches them to the cgroup; links of an earlier process are replaced without a moment in
/// which none is attached. `flow` goes first: a connection that it does not see is never recorded, and so never let
/// go.
///
/// # Errors
/// [`BpfError`]: the cgroup cannot be opened, or the kernel refuses a program or to attach it. What was attached by
/// then stays until [`detach`].
pub(super) fn attach(object: &mut Ebpf, links: &Path, cgroup: &Path) -> Result<(), BpfError> {
    let pins = pins(links);
    std::fs::create_dir_all(&pins).map_err(|source| BpfError::PinDirectory {
        path: pins.clone(),
        source,
    })?;
    let cgroup = File::open(cgroup).map_err(|source| BpfError::Cgroup {
        path: cgroup.to_owned(),
        source,
    })?;
    // `Single` is what lets other programs hang there too: the kernel makes every link of this kind one of many.
    let mode = CgroupAttachMode::Single;
    macro_rules! attach {
        ($type:ty, $name:expr) => {{
            let name: &'static str = $name;
            let program: &mut $type = program(object, name)?;
            program
                .load()
                .map_err(|source| step("the kernel refused", name, source))?;
            let attaching = |source: ProgramError| step("attaching to the cgroup", name, source);
            let id = program.attach(&cgroup, mode).map_err(attaching)?;
            let link = program.take_link(id).map_err(attaching)?;
            let path = pins.join(name);
            let link = FdLink::try_from(link).map_err(|source| BpfError::PinLink {
                path: path.clone(),
                source: source.into(),
            })?;
            pin(link, &path)?;
        }};
    }
    attach!(SockOps, FLOW);
    setsockopt(object, &pins, &cgroup)?;
    for name in ADDRESS_PROGRAMS {
        attach!(CgroupSockAddr, name);
    }
    Ok(())
}

fn setsockopt(object: &mut Ebpf, pins: &Path, cgroup: &File) -> Result<(), BpfError> {
    let program: &mut CgroupSockopt = program(object, SETSOCKOPT)?;
    let failed = |source: ProgramError| step("the kernel refused", SETSOCKOPT, source);
    program.load().map_err(failed)?;
    let descriptor = program.fd().map_err(failed)?;
    replace_pin(&pins.join(SETSOCKOPT), |fresh| {
        link::pin_setsockopt(descriptor.as_fd(), cgroup.as_fd(), fresh).map_err(Into::into)
    })
}

/// Takes the programs off the cgroup. From then on `pod_egress` steers alone.
pub(super) fn detach(links: &Path) {
    remove_pins(&pins(links));
}

fn pins(links: &Path) -> PathBuf {
    links.join(PINS)
}
