//! Attaches the programs of one pod and keeps them attached without this process: links are pinned; below kernel
//! 6.6, where tc has no links, the filters stay on the device by themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, TcAttachOptions, TcError, TcHandle},
    },
};

use super::BpfError;

/// Priority and handle of our clsact filters: fixed, so that a filter of an earlier process is recognised.
const CLSACT_PRIORITY: u16 = 0x7a74;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);
const LOOKUP: &str = "pod_lookup";
const EGRESS: &str = "pod_egress";
const LOOPBACK: &str = "pod_loopback";
const LO: &str = "lo";
/// lo is the first device of every network namespace, whatever it is called.
const LO_NUMBER: u32 = 1;

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TcMode {
    /// tcx links from kernel 6.6, clsact filters below.
    #[default]
    Auto,
    /// tcx links (kernel 6.6 and later).
    Tcx,
    /// clsact filters, on any kernel.
    Clsact,
}

impl TcMode {
    /// What is attached on a kernel that has tcx or not: the word in the log.
    pub fn word(self, kernel_has_tcx: bool) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Auto if kernel_has_tcx => "tcx",
            Self::Auto | Self::Clsact => "clsact",
        }
    }

    fn uses_links(self) -> bool {
        match self {
            Self::Tcx => true,
            Self::Clsact => false,
            Self::Auto => super::probe::has_tcx(),
        }
    }
}

/// The attached programs of one pod. Dropping it leaves them attached; [`PodLinks::detach`] takes them off.
#[derive(Debug)]
pub struct PodLinks {
    /// The one program that is needed again, when a device comes. The others, and what they were loaded from, are the
    /// kernel's.
    egress: SchedClassifier,
    pins: PathBuf,
    /// Numbers of the devices that have `pod_egress`. Not names: a device that takes another's place takes its name
    /// too, and has no program.
    devices: BTreeSet<u32>,
    links: bool,
}

impl PodLinks {
    pub(super) fn attach(
        mut object: Ebpf,
        netns: BorrowedFd<'_>,
        pins: &Path,
        mode: TcMode,
    ) -> Result<Self, BpfError> {
        let captured_before = is_captured(pins);
        std::fs::create_dir_all(pins).map_err(|source| BpfError::PinDirectory {
            path: pins.to_owned(),
            source,
        })?;
        let links = mode.uses_links();
        let attached = Self::attach_all(&mut object, netns, pins, links);
        // Programs of an earlier process are taken off by nobody but who releases the pod.
        if attached.is_err() && !captured_before {
            detach(pins, links);
        }
        attached
    }

    /// Inbound first: once the egress net hangs, an answer must find its way.
    fn attach_all(
        object: &mut Ebpf,
        netns: BorrowedFd<'_>,
        pins: &Path,
        links: bool,
    ) -> Result<Self, BpfError> {
        attach_lookup(object, netns, pins)?;
        let loopback = load_tc(object, LOOPBACK)?;
        attach_tc(loopback, LOOPBACK, LO_NUMBER, LO, pins, links)?;
        let loaded = load_tc(object, EGRESS)?;
        let egress = loaded
            .info()
            .and_then(|info| SchedClassifier::from_program_info(info, EGRESS.into()))
            .map_err(|source| step("taking a handle to", EGRESS, source))?;
        let mut this = Self {
            egress,
            pins: pins.to_owned(),
            devices: BTreeSet::new(),
            links,
        };
        this.follow_devices()?;
        Ok(this)
    }

    /// Attaches `pod_egress` to devices that have appeared since; returns how many. Call it inside the pod's
    /// namespace.
    ///
    /// # Errors
    /// [`BpfError`] for the first device that refuses.
    pub fn follow_devices(&mut self) -> Result<usize, BpfError> {
        let present = devices().map_err(BpfError::Devices)?;
        for gone in self
            .devices
            .extract_if(.., |number| !present.contains_key(number))
        {
            let _ = std::fs::remove_file(self.pins.join(pin_name(EGRESS, gone)));
        }
        let (mut new, mut refused) = (0, None);
        for (number, name) in present {
            if self.devices.contains(&number) {
                continue;
            }
            match attach_tc(&mut self.egress, EGRESS, number, &name, &self.pins, self.links) {
                Ok(()) => {
                    self.devices.insert(number);
                    new += 1;
                }
                // The others are captured all the same.
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        refused.map_or(Ok(new), Err)
    }

    /// Takes every program off the pod. Call it inside the pod's namespace.
    pub fn detach(&mut self) {
        detach(&self.pins, self.links);
    }
}

fn detach(pins: &Path, links: bool) {
    remove_pins(pins);
    if !links {
        detach_filters();
    }
}

fn attach_lookup(object: &mut Ebpf, netns: BorrowedFd<'_>, pins: &Path) -> Result<(), BpfError> {
    let program: &mut SkLookup = program(object, LOOKUP)?;
    program
        .load()
        .map_err(|source| step("the kernel refused", LOOKUP, source))?;
    let id = program
        .attach(netns)
        .map_err(|source| step("attaching", LOOKUP, source))?;
    let link = program
        .take_link(id)
        .map_err(|source| step("attaching", LOOKUP, source))?;
    pin(FdLink::from(link), &pins.join(LOOKUP))
}

fn load_tc<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, BpfError> {
    let program: &mut SchedClassifier = program(object, name)?;
    program
        .load()
        .map_err(|source| step("the kernel refused", name, source))?;
    Ok(program)
}

fn attach_tc(
    program: &mut SchedClassifier,
    name: &'static str,
    number: u32,
    device: &str,
    pins: &Path,
    links: bool,
) -> Result<(), BpfError> {
    let at = if name == LOOPBACK {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    if !links {
        return attach_filter(program, name, device, at);
    }
    let pin_path = pins.join(pin_name(name, number));
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program
        .attach_with_options(device, at, options)
        .map_err(|source| step("attaching", name, source))?;
    let link = program
        .take_link(id)
        .map_err(|source| step("attaching", name, source))?;
    let link = FdLink::try_from(link).map_err(|source| BpfError::PinLink {
        path: pin_path.clone(),
        source: source.into(),
    })?;
    pin(link, &pin_path)
}

/// Takes our clsact filters off every device of the calling thread's namespace, whichever process made them.
pub fn detach_filters() {
    for device in devices().unwrap_or_default().values() {
        // Not there is as good as removed.
        let _ = tc::qdisc_detach_program(device, TcAttachType::Egress, EGRESS);
    }
    let _ = tc::qdisc_detach_program(LO, TcAttachType::Ingress, LOOPBACK);
}

/// File name of a link's pin.
fn pin_name(program: &str, device: u32) -> String {
    format!("{program}-{device}")
}

/// A clsact filter with our fixed priority and handle. One that is there already is an earlier process's, running
/// the same program over the same maps: it stays, so that there is no moment without one.
fn attach_filter(
    program: &mut SchedClassifier,
    name: &'static str,
    device: &str,
    at: TcAttachType,
) -> Result<(), BpfError> {
    // Fails where the qdisc is there already, which is as good.
    let _ = tc::qdisc_add_clsact(device);
    let options = NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        classid: None,
    };
    match program.attach_with_options(device, at, TcAttachOptions::Netlink(options)) {
        Ok(id) => {
            let link = program
                .take_link(id)
                .map_err(|source| step("attaching", name, source))?;
            #[expect(
                clippy::mem_forget,
                reason = "dropping the handle would take the filter off the device"
            )]
            std::mem::forget(link);
            Ok(())
        }
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            Ok(())
        }
        Err(source) => Err(step("attaching", name, source)),
    }
}

/// Pins a link; an older pin of the same place is replaced in one step, and its program detached by that.
pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), BpfError> {
    replace_pin(path, |fresh| {
        let pinned: PinnedLink = link.pin(fresh)?;
        drop(pinned);
        Ok(())
    })
}

/// Puts what `make` pins at the path it is given in the place of `path`.
pub(super) fn replace_pin(
    path: &Path,
    make: impl FnOnce(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), BpfError> {
    let failed = |source| BpfError::PinLink {
        path: path.to_owned(),
        source,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!("new-{name}"));
    let _ = std::fs::remove_file(&fresh);
    make(&fresh).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(|source| failed(source.into()))
}

/// Whether links are pinned in a pod's directory. The first that is made is the one that is asked for.
pub(super) fn is_captured(pins: &Path) -> bool {
    pins.join(LOOKUP).exists()
}

pub(super) fn remove_pins(directory: &Path) {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %directory.display(), %error, "cannot remove pinned links");
        }
        _ => {}
    }
}

/// The devices of this thread's namespace but lo: their names by their numbers.
fn devices() -> io::Result<BTreeMap<u32, String>> {
    let names = nix::net::if_::if_nameindex()?;
    Ok(names
        .iter()
        .map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
        .filter(|(number, _)| *number != LO_NUMBER)
        .collect())
}

pub(super) fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, BpfError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or(BpfError::Missing(name))?;
    program
        .try_into()
        .map_err(|source| step("the object's kind is wrong:", name, source))
}

pub(super) fn step(step: &'static str, program: &'static str, source: ProgramError) -> BpfError {
    BpfError::Program {
        step,
        program,
        source: Box::new(source),
    }
}
